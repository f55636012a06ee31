"""A process that meets toy kinds as a plugin: training, bundle, audit, evaluation and service.

Argument: an empty directory. Two variants are in ``bundle`` then: one that ``delctl`` trained with
the toy decoder, and one of the toy mechanism. Prints JSON as its last line. Nothing here imports
the toys.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from del_core.audit import settings
from del_core.audit.settings import AttackerBudget, AuditConfig, InverterConfig, ProvenConfig
from del_core.bundle import Bundle, Guarantees, VariantContent, load_bundle, write_bundle
from del_core.mechanism import MechanismSpec
from del_core.wire import PublicSegment
from delctl.main import run
from deployments.service.base_model import EmbeddingTable, end_of_text_ids
from deployments.service.service import Capacity, PrivateLMService, ServedModel
from tests.support.scripted_engine import ScriptedEngine
from tests.support.serving_frames import encode, make_request, private_segment
from tests.support.texts import ALICE
from tests.support.tiny import BOS_ID, make_tiny

TOY = MechanismSpec("toy", {"bits": 3, "replaced": 1 << 14})


def call(*arguments: object) -> None:
    code = run([str(argument) for argument in arguments])
    assert code == 0, (arguments, code)


def add_toy_mechanism(trained: Bundle, path: Path) -> Bundle:
    """Write the bundle with one more variant, which has the toy mechanism and the same decoder."""
    manifest, decoder = trained.manifest, trained.decoder("played")
    mechanism = TOY.build(manifest.dim, manifest.max_level)
    played = VariantContent(
        trained.variants["played"],
        weight=decoder.pop("weight"),
        bias=decoder.pop("bias"),
        norm_limit=trained.norm_limit("played"),
        tensors=decoder,
    )
    variant = replace(
        played.variant,
        name="spun",
        bits=mechanism.bits,
        ratio_numerator=None,
        guarantees=Guarantees(0.0, mechanism.worst_pair().largest_loss, None, None),
        audit={},
        other=TOY,
    )
    write_bundle(
        path,
        base_model=manifest.base_model,
        table=trained.client.table,
        max_level=manifest.max_level,
        clip=manifest.clip,
        tokenizer_json=trained.client.tokenizer_path.read_bytes(),
        variants=[played, replace(played, variant=variant, weight=played.weight[:, : mechanism.dim])],
        log_prior=trained.log_prior,
        bos_token_id=manifest.bos_token_id,
    )
    return load_bundle(path)


def serve_one(bundle: Bundle, model: Path, variant: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts of a private segment, and the rows that the service decodes from them."""
    served = ServedModel(
        bundle=bundle,
        extra_bundles=(),
        table=EmbeddingTable.open(model, bundle.manifest.base_model),
        tokenizer=Tokenizer.from_file(str(bundle.client.tokenizer_path)),
        end_of_text=end_of_text_ids(model),
    )
    engine = ScriptedEngine()
    service = PrivateLMService(served, engine, Capacity(requests=4, max_frame_bytes=1 << 20))
    segment = private_segment(bundle, variant, 5, seed=3)
    request = make_request(bundle, variant, segments=(PublicSegment((BOS_ID,)), segment))

    async def complete() -> None:
        await service.complete(await service.parse(encode(bundle, request)))

    asyncio.run(complete())
    return segment.codes, engine.calls[0].embeddings[1:]


def main(work: Path) -> None:
    torch.set_num_threads(1)
    model, projection, trained, bundle_path = make_tiny(work).model, work / "stage1", work / "stage2", work / "toy"
    text, other_text = work / "text.txt", work / "other.txt"
    text.write_text(ALICE.read_text(encoding="utf-8")[:30_000], encoding="utf-8")
    other_text.write_text(ALICE.read_text(encoding="utf-8")[30_000:42_000], encoding="utf-8")
    settings.QUICK = AuditConfig(
        prompts=4, length=16, tuning=2, leakage_samples=100,
        inverters=(InverterConfig(width=32, layers=1, steps=2, batch=4, evaluate_every=2),),
        proven=ProvenConfig(compose_vocabulary=False, tokens=64),
        attacker=AttackerBudget("small", training=0.002, search=0.002, beams=2, candidates=64),
    )  # fmt: skip
    sizes = ("--prompt-tokens", 16, "--continuation-tokens", 4)
    short = (*sizes, "--batch", 4, "--steps", 3, "--quiet")
    source = ("--model", model, "--text", text)
    call("train", "projection", *source, "--out", projection, "--dim", 16, *short)
    call(
        "train", "soft-prompt", *source, "--projection", projection, "--out", trained, "--name", "played",
        "--mu", 20, "--decoder", "toy", "--rows", 0, *short,
        "--steps", 20, "--learning-rate", 0.1,
    )  # fmt: skip
    call("bundle", "--model", model, "--projection", projection, "--variant", trained, "--out", work / "one")
    bundle = add_toy_mechanism(load_bundle(work / "one"), bundle_path)
    held_out = (bundle_path, "--model", model, "--text", other_text)
    call("audit", *held_out, "--out", work / "report", "--quick", "--update")
    call("evaluate", *held_out, "--passages", 2, "--written", 2, *sizes, "--quiet")
    call("inspect", bundle_path)

    bundle = load_bundle(bundle_path)
    tensors = bundle.decoder("played")
    counts, rows = serve_one(bundle, model, "played")
    y = bundle.mechanism("played").dequantize(counts)
    limited = y * np.minimum(1.0, bundle.norm_limit("played") / np.linalg.norm(y, axis=1, keepdims=True))
    expected = (limited * tensors["gain"]) @ tensors["weight"].T + tensors["bias"]
    differences = [float(np.abs(rows - expected).max())]
    tensors, (counts, rows) = bundle.decoder("spun"), serve_one(bundle, model, "spun")
    expected = counts / np.float32(7.0) * tensors["gain"] @ tensors["weight"].T + tensors["bias"]
    differences.append(float(np.abs(rows - expected).max()))
    state = torch.load(trained / "checkpoints" / "played.checkpoint", weights_only=True)
    found = {
        "gain": float(state["parameters"]["gain"][0]),  # at the last step, whichever was the best
        "multiplications": [bundle.decoder_multiplications(name) for name in bundle.variants],
        "differences": differences,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
