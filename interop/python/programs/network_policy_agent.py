"""The steps of the first worked example: an agent that probes the network from inside a locked sandbox."""

import json
import textwrap

from declaw import Sandbox

ALLOWED = "api.github.com"

AGENT = textwrap.dedent(
    """\
    import json, socket

    def probe(host, port, timeout=5):
        try:
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            connection.settimeout(timeout)
            connection.connect((host, port))
            connection.close()
            return {"host": host, "port": port, "status": "CONNECTED"}
        except Exception as error:
            return {"host": host, "port": port, "status": f"BLOCKED: {error}"}

    with open("/tmp/test_plan.json") as plan:
        targets = json.load(plan)["targets"]
    print("=== Network Connectivity Test Results ===")
    results = []
    for target in targets:
        result = probe(target["host"], target["port"])
        mark = "OK" if result["status"] == "CONNECTED" else "XX"
        print(f"  [{mark}] {result['host']}:{result['port']} -> {result['status']}")
        results.append(result)
    with open("/tmp/results.json", "w") as out:
        json.dump(results, out, indent=2)
    print(f"Tested {len(results)} targets.")
    """
)

PLAN = {
    "targets": [
        {"host": "1.1.1.1", "port": 80, "note": "a resolver, not listed"},
        {"host": "8.8.8.8", "port": 53, "note": "another resolver, not listed"},
        {"host": "93.184.216.34", "port": 80, "note": "a web server, not listed"},
    ]
}

print("--- Creating Sandbox with Network Policy ---")
print(f"Policy: allow_out=['{ALLOWED}']")
print("All other outbound traffic will be blocked.")
sandbox = Sandbox.create(template="python", timeout=300, network={"allow_out": [ALLOWED]})
try:
    print(f"Sandbox created: {sandbox.sandbox_id}")
    print("--- Running Network Test Agent ---")
    sandbox.files.write("/tmp/agent.py", AGENT)
    sandbox.files.write("/tmp/test_plan.json", json.dumps(PLAN, indent=2))
    result = sandbox.commands.run("python3 /tmp/agent.py", timeout=60)
    print("Agent output:")
    print(result.stdout)
    print("--- Analyzing Results ---")
    results = json.loads(sandbox.files.read("/tmp/results.json"))
    blocked = sum(1 for result in results if "BLOCKED" in result["status"])
    connected = sum(1 for result in results if result["status"] == "CONNECTED")
    print(f"Tested {len(results)} targets.")
    print(f"Blocked: {blocked}")
    print(f"Connected: {connected}")
    if blocked == len(results):
        print("[PASS] Network policy is blocking non-allowlisted traffic.")
finally:
    sandbox.kill()
