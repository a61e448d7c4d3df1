"""What an agent might try; a JSON line for each attempt."""

import json
import socket
import ssl
import urllib.error
import urllib.request

ALLOWED = "api.github.com"


def attempt(what, do, **known):
    try:
        happened, reached = do(), True
    except OSError as error:
        happened, reached = plainly(error), False
    print(json.dumps({"what": what, "happened": happened, "reached": reached, **known}), flush=True)


def plainly(error):
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        error = error.reason
    if isinstance(error, ssl.SSLError):
        return "TLS: " + (error.reason or str(error)).lower().replace("_", " ")
    return error.strerror or str(error)


def https(url):
    # The lab's web servers have certificates of the lab's own authority.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    request = urllib.request.Request(url, headers={"User-Agent": "bailiwick-demo"})
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as reply:
            return f"HTTP {reply.status}"
    except urllib.error.HTTPError as reply:
        if reply.headers.get("content-type") == "application/json" and b"egress_blocked" in reply.read():
            raise OSError(None, f"HTTP {reply.code}, egress_blocked") from None
        return f"HTTP {reply.code}"


def connect(host, port):
    socket.create_connection((host, port), 10).close()
    return "connected"


def other_name():
    context = ssl.create_default_context()
    with socket.create_connection((ALLOWED, 443), 10) as connection:
        context.wrap_socket(connection, server_hostname="evil.com").close()
    return "connected"


attempt(f"GET https://{ALLOWED}/", lambda: https(f"https://{ALLOWED}/"), host=ALLOWED, port=443)
attempt("GET https://evil.com/", lambda: https("https://evil.com/"), host="evil.com", port=443)
attempt("connect to 1.1.1.1:443", lambda: connect("1.1.1.1", 443), address="1.1.1.1", port=443)
attempt("connect to 8.8.8.8:53", lambda: connect("8.8.8.8", 53), address="8.8.8.8", port=53)
attempt("the metadata service", lambda: connect("169.254.169.254", 80), address="169.254.169.254", port=80)
attempt(f"{ALLOWED}'s address, but the name evil.com", other_name, host="evil.com", port=443)
