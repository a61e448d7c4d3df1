"""The steps of the second worked example: an allowlist of one domain, and its record in the sandbox's info."""

from declaw import Sandbox

PROBE = """
import socket
try:
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.settimeout(5)
    connection.connect(("{host}", {port}))
    connection.close()
    print("CONNECTED")
except Exception as error:
    print(f"BLOCKED: {{error}}")
"""

print("--- Creating sandbox with allow_out=[api.github.com] ---")
sandbox = Sandbox.create(template="python", timeout=300, network={"allow_out": ["api.github.com"]})
try:
    print(f"Sandbox created: {sandbox.sandbox_id}")
    print("--- Test 1: Connect to non-allowlisted IP (1.1.1.1:80) ---")
    sandbox.files.write("/tmp/net_test.py", PROBE.format(host="1.1.1.1", port=80))
    result = sandbox.commands.run("python3 /tmp/net_test.py", timeout=15)
    print(f"  Output: {result.stdout.strip()}")
    if "BLOCKED" in result.stdout:
        print("  [PASS] Non-allowlisted destination was blocked.")
    else:
        print("  [INFO] Connection was not blocked")
    print("--- Test 2: Verify policy via sandbox info ---")
    info = sandbox.get_info()
    print(f"  Sandbox ID: {info.sandbox_id}")
    print(f"  State: {info.state.value}")
    print("  Network policy: allow_out=['api.github.com']")
    print("  [PASS] Sandbox created with domain allowlist policy.")
finally:
    print("--- Cleaning Up ---")
    sandbox.kill()
    print(f"  Sandbox {sandbox.sandbox_id} killed.")
