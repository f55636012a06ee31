"""Adapters: attached and removed, read from a bundle, refused if they are not of their shape."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from del_core.bundle import Adapter, BundleError, load_bundle, write_bundle
from del_core.bundle.manifest import AdapterShape
from del_core.evaluation.bundle import BundleView
from del_core.evaluation.measure import passage_nll
from del_core.lm.adapter import AdapterError, adapted, attached, new_shape, start_from
from del_core.lm.model import load_base_lm
from tests.support.adapters import random_adapter
from tests.support.bundle import bundle_content, make_variant


@pytest.fixture(scope="module")
def lm(tiny):
    return load_base_lm(tiny.model)


def _logits(lm):
    with torch.no_grad():
        return lm.model(input_ids=torch.arange(10)[None]).logits


def test_a_model_is_adapted_while_the_context_lasts(lm):
    before, names = _logits(lm), [name for name, _ in lm.model.named_parameters()]
    with adapted(lm.model, random_adapter(lm.model, 4)):
        within = _logits(lm)
    assert not torch.allclose(before, within)
    assert torch.equal(_logits(lm), before)
    assert [name for name, _ in lm.model.named_parameters()] == names
    with adapted(lm.model, None):
        assert torch.equal(_logits(lm), before)


def test_a_new_adapter_changes_nothing_and_only_it_is_trained(lm):
    before = _logits(lm)
    with attached(lm.model, new_shape(lm.model, 2)) as layers:
        assert torch.equal(_logits(lm), before)
        trained = {name for name, parameter in lm.model.named_parameters() if parameter.requires_grad}
        assert len(trained) == len(layers.parameters()) == 2 * 7 * lm.model.config.num_hidden_layers


def _product(tensors, name, shape):
    low, high = (np.asarray(tensors[name.replace("lora_A", part)], np.float64) for part in ("lora_A", "lora_B"))
    return shape.alpha / shape.rank * high @ low


@pytest.mark.parametrize("rank", [2, 4, 7])
def test_an_adapter_begins_as_the_nearest_of_its_rank(lm, rank):
    given = random_adapter(lm.model, 4)
    with attached(lm.model, new_shape(lm.model, rank)) as layers:
        start_from(layers, given)
        found, shape = {name: one.detach().numpy() for name, one in layers.parameters().items()}, layers.shape
    for name in (one for one in given.tensors if "lora_A" in one):
        wanted = _product(given.tensors, name, given.shape)
        u, values, v = np.linalg.svd(wanted, full_matrices=False)
        values[rank:] = 0.0
        assert _product(found, name, shape) == pytest.approx((u * values) @ v, abs=1e-5 * np.abs(wanted).max() + 1e-9)


def test_an_adapter_of_other_layers_is_no_start(lm):
    given = random_adapter(lm.model, 2)
    other = Adapter(given.shape, dict(list(given.tensors.items())[1:]))
    with attached(lm.model, new_shape(lm.model, 2)) as layers, pytest.raises(AdapterError, match="got others: "):
        start_from(layers, other)


def test_a_model_without_linear_layers_of_these_names(lm):
    with pytest.raises(AdapterError, match=r"must have linear layers named down_proj, .* got none"):
        new_shape(torch.nn.Sequential(torch.nn.Linear(2, 2)), 2)


def test_tensors_of_another_model(lm):
    good = random_adapter(lm.model, 2)
    name = next(iter(good.tensors))
    for tensors, said in (
        ({**good.tensors, name: good.tensors[name][:, :3]}, f"{name} must have shape"),
        ({key: value for key, value in good.tensors.items() if key != name}, f"got others: {name}"),
    ):
        with pytest.raises(AdapterError, match=said), adapted(lm.model, Adapter(good.shape, tensors)):
            pass


# ------------------------------------------------------------------------------- in a bundle


def _write(path, lm, tiny, adapter):
    """Write a bundle of the tiny model with two variants that differ in the adapter alone."""
    generator = np.random.default_rng(3)
    weight = generator.normal(size=(64, 8)).astype(np.float32)
    variants = [
        make_variant("bare", weight=weight, bits=4),
        make_variant("adapted", weight=weight, bits=4, adapter=adapter),
    ]
    content = bundle_content(
        generator.integers(-100, 100, size=(320, 8)),
        variants,
        base_model=load_bundle(tiny.bundle).manifest.base_model,
        tokenizer_json=(tiny.model / "tokenizer.json").read_bytes(),
        max_level=127,
    )
    write_bundle(path, **content)
    return load_bundle(path)


def test_a_bundle_holds_an_adapter_and_evaluation_uses_it(lm, tiny, tmp_path):
    adapter = random_adapter(lm.model, 4)
    bundle = _write(tmp_path / "bundle", lm, tiny, adapter)
    assert bundle.adapter("bare") is None
    found = bundle.adapter("adapted")
    assert found.shape == adapter.shape == AdapterShape(4, 8, tuple(sorted(adapter.shape.modules)))
    assert found.tensors.keys() == adapter.tensors.keys()
    assert all(np.array_equal(found.tensors[name], value) for name, value in adapter.tensors.items())
    assert json.loads((bundle.path / "client" / "manifest.json").read_bytes())["variants"][1]["adapter"]["rank"] == 4
    windows = torch.randint(2, 320, (2, 12), generator=torch.Generator().manual_seed(0))
    bare, own = BundleView(bundle, "bare"), BundleView(bundle, "adapted")
    plain = passage_nll(lm, bare, windows, 8, seed=1)
    with adapted(lm.model, own.adapter):
        assert np.abs(passage_nll(lm, own, windows, 8, seed=1) - plain).min() > 1e-3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda name, array: {name: array[:1]}, "must be 2x64, got 1x64"),
        (lambda name, array: {name: array.ravel()}, "must be a matrix"),
        (lambda name, array: {name: np.full_like(array, np.nan)}, "must be finite"),
        (lambda name, array: {}, "beside it, got none"),
        (lambda name, array: {name: array, name.replace("q_proj", "x_proj"): array}, "of layers named down_proj|"),
        (lambda name, array: {name: array.astype(np.uint8)}, "dtype must be F32 or F16"),
    ],
)
def test_files_that_are_not_of_the_adapter_s_shape(lm, tiny, tmp_path, change, said):
    good = random_adapter(lm.model, 2)
    name = next(name for name in good.tensors if "q_proj.lora_A" in name)
    tensors = {key: value for key, value in good.tensors.items() if key != name}
    tensors |= change(name, good.tensors[name])
    with pytest.raises(BundleError, match=r"adapter-adapted\.safetensors") as caught:
        _write_file(tmp_path / "bundle", lm, tiny, good.shape, save(tensors))
    assert said in str(caught.value)


def _write_file(path, lm, tiny, shape, data):
    """Write a bundle whose adapter is a file of these bytes, with a manifest that states them."""
    import del_core.bundle.bundle as module

    original = module.dump
    with pytest.MonkeyPatch.context() as patch:
        marked = Adapter(shape, {"marked": np.zeros(1, np.float32)})
        patch.setattr(module, "dump", lambda tensors: data if "marked" in tensors else original(tensors))
        _write(path, lm, tiny, marked)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (AdapterShape(0, 2, ("q_proj",)), r"adapter\.rank must be an integer from 1 to 256"),
        (AdapterShape(300, 2, ("q_proj",)), r"adapter\.rank must be an integer from 1 to 256"),
        (AdapterShape(2, 0, ("q_proj",)), r"adapter\.alpha must be"),
        (AdapterShape(2, 2, ()), r"adapter\.modules must"),
        (AdapterShape(2, 2, ("q.proj",)), r"adapter.modules\[0\] must"),
        (AdapterShape(2, 2, ("v_proj", "q_proj")), "must be sorted"),
    ],
)
def test_shapes_that_no_manifest_may_state(lm, tiny, tmp_path, shape, said):
    with pytest.raises(BundleError, match=said):
        _write(tmp_path / "bundle", lm, tiny, Adapter(shape, {"marked": np.zeros(1, np.float32)}))
