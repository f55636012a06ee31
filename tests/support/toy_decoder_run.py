"""A process that meets the toy decoder as a plugin: training, bundle, audit and serving.

Argument: an empty directory. Prints JSON. Nothing here imports the toy.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from del_core.audit import settings
from del_core.audit.settings import AuditConfig, InverterConfig, ProvenConfig
from del_core.bundle import load_bundle
from del_core.wire import PublicSegment
from delctl.main import run
from deployments.service.base_model import EmbeddingTable, end_of_text_ids
from deployments.service.service import Capacity, PrivateLMService, ServedModel
from tests.support.scripted_engine import ScriptedEngine
from tests.support.serving_frames import encode, make_request, private_segment
from tests.support.texts import ALICE
from tests.support.tiny import BOS_ID, make_tiny

torch.set_num_threads(1)
work = Path(sys.argv[1])
model, projection, variant, bundle_path = make_tiny(work).model, work / "projection", work / "variant", work / "toy"
text, other_text = work / "text.txt", work / "other.txt"
text.write_text(ALICE.read_text(encoding="utf-8")[:30_000], encoding="utf-8")
other_text.write_text(ALICE.read_text(encoding="utf-8")[30_000:42_000], encoding="utf-8")
settings.QUICK = AuditConfig(
    prompts=4, length=16, tuning=2, beams=2, leakage_samples=100,
    inverters=(InverterConfig(width=32, layers=1, steps=2, batch=4, evaluate_every=2),),
    proven=ProvenConfig(compose_vocabulary=False, tokens=64),
)  # fmt: skip


def call(*arguments: object) -> None:
    code = run([str(argument) for argument in arguments])
    assert code == 0, (arguments, code)


short = ("--prompt-tokens", 16, "--continuation-tokens", 4, "--batch", 4, "--steps", 3, "--quiet")
source = ("--model", model, "--text", text)
call("train", "projection", *source, "--out", projection, "--dim", 16, *short)
call(
    "train", "soft-prompt", *source, "--projection", projection, "--out", variant, "--name", "played",
    "--mu", 20, "--decoder", "toy", "--rows", 0, *short,
)  # fmt: skip
call("bundle", "--model", model, "--projection", projection, "--variant", variant, "--out", bundle_path)
call(
    "audit", bundle_path, "--model", model, "--text", other_text, "--out", work / "report",
    "--quick", "--update", "--quiet",
)  # fmt: skip

bundle = load_bundle(bundle_path)
service_model = ServedModel(
    bundle=bundle,
    extra_bundles=(),
    table=EmbeddingTable.open(model, bundle.manifest.base_model),
    tokenizer=Tokenizer.from_file(str(bundle.client.tokenizer_path)),
    end_of_text=end_of_text_ids(model),
)
engine = ScriptedEngine()
service = PrivateLMService(service_model, engine, Capacity(requests=4, max_frame_bytes=1 << 20))
segment = private_segment(bundle, "played", 5, seed=3)


async def complete() -> None:
    request = make_request(bundle, "played", segments=(PublicSegment((BOS_ID,)), segment))
    await service.complete(await service.parse(encode(bundle, request)))


asyncio.run(complete())
tensors = bundle.decoder("played")
y = bundle.mechanism("played").dequantize(segment.codes)
limited = y * np.minimum(1.0, bundle.norm_limit("played") / np.linalg.norm(y, axis=1, keepdims=True))
expected = (limited * tensors["gain"]) @ tensors["weight"].T + tensors["bias"]
print(
    json.dumps(
        {
            "decoder": bundle.variants["played"].decoder,
            "gain": float(tensors["gain"][0]),
            "multiplications": bundle.decoder_multiplications("played"),
            "audited": sorted(bundle.variants["played"].audit),
            "difference": float(np.abs(engine.calls[0].embeddings[1:] - expected).max()),
        }
    )
)
