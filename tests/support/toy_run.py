"""A process that meets the toy mechanism as a plugin: bundle, prompt, frame and ledger.

Arguments: directory of a bundle with the variant "toy", file of an SQLite ledger. Prints JSON.
Nothing here imports the toy.
"""

from __future__ import annotations

import json
import math
import sys

from client_lib import PrivacyPolicy
from client_lib.ledger import Budget, Ledger, SQLiteStore
from client_lib.prompts.encoder import Encoder
from del_core.bundle import load_bundle
from del_core.mechanism import map_tokens
from del_core.wire import Sampling, Shape, decode_frame

bundle = load_bundle(sys.argv[1])
mechanism = bundle.mechanism("toy")
encoder = Encoder(bundle.client)
PrivacyPolicy(max_epsilon_per_token=20.0).check_prompt(bundle.client, "toy", 4)
encoded = encoder.encode("the quick brown fox", "toy")
frame = encoder.frame(encoded, Sampling())
request = decode_frame(frame, {"toy": Shape.from_mechanism(mechanism)})
ledger = Ledger(SQLiteStore(sys.argv[2]), budget=Budget(epsilon=1000.0))
spending = ledger.spend("somebody", mechanism, encoded.draws)
counts = request.segments[-1].codes
guesses = map_tokens(mechanism, bundle.client.table, bundle.log_prior, counts)
print(
    json.dumps(
        {
            "kind": mechanism.kind,
            "shape": [*counts.shape],
            "private": request.private_tokens,
            "epsilon": spending.epsilon,
            "finite": math.isfinite(spending.epsilon),
            "entries": ledger.export("somebody")["entries"],
            "guesses": guesses.tolist(),
        }
    )
)
