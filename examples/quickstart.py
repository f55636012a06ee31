"""A private completion in ten lines: python examples/quickstart.py [URL of the server]"""

import sys

from client_lib import Client, private, public

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
prompt = [public("Dear sister,"), private(" the doctor says that my fever will not go down")]

with Client(url) as client:
    print(f"epsilon of a private token at delta 1e-6: {client.epsilon('balanced'):.1f}")
    for chunk in client.stream(prompt, variant="balanced", max_tokens=48):
        print(chunk.text, end="", flush=True)
    print()
