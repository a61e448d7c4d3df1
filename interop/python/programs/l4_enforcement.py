"""The steps of the third worked example: refused in the kernel, not after a handshake with a local listener."""

from declaw import ALL_TRAFFIC, NetworkPolicy, Sandbox, SecurityPolicy

POLICY = SecurityPolicy(network=NetworkPolicy(allow_out=["api.openai.com"], deny_out=[ALL_TRAFFIC]))

PROBE = """
import socket, urllib.request

def tcp(host, port, timeout=5):
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        connection.connect((host, port))
        return "REACH"
    except Exception as error:
        return f"BLOCKED: {type(error).__name__}: {error}"
    finally:
        connection.close()

def l7(url, timeout=5):
    try:
        urllib.request.urlopen(url, timeout=timeout)
        return "REACH"
    except Exception as error:
        return f"BLOCKED: {type(error).__name__}: {str(error)[:80]}"

print("l4_evil_com:", tcp("evil.com", 443))
print("l4_cloudflare_dns:", tcp("1.1.1.1", 443))
print("l7_evil_com:", l7("https://evil.com"))
print("l4_allowed_openai:", tcp("api.openai.com", 443))
"""

sandbox = Sandbox.create(template="python", timeout=120, security=POLICY)
try:
    sandbox.files.write("/tmp/script.py", PROBE)
    result = sandbox.commands.run("python3 /tmp/script.py", timeout=60)
    print(result.stdout)
finally:
    sandbox.kill()
