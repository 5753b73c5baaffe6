"""Published weight files: read without running code, held to a module's keys, known by what is in them."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from pipeline.tokenizers.weights import (
    CodecOptions,
    check_keys,
    choose_device,
    file_sha256,
    flat_state,
    load_strictly,
    read_state,
    require_file,
    state_fingerprint,
)
from shards.errors import ConfigError, TokenizerError


class RunsCode:
    """A pickle that runs a command when it is read carelessly."""

    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


def state() -> dict[str, torch.Tensor]:
    """Of ``nn.Linear(2, 3)``."""
    return {"weight": torch.arange(6.0).reshape(3, 2), "bias": torch.ones(3)}


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "ckpt.dev", "no_suffix"])
def test_a_file_is_read_under_any_name(tmp_path: Path, name: str):
    """By its suffix if it is safetensors, as a torch file otherwise."""
    path = tmp_path / name
    save_file(state(), path) if path.suffix == ".safetensors" else torch.save(state(), path)
    for key, tensor in flat_state(read_state(path), path).items():
        assert torch.equal(tensor, state()[key])


def test_a_file_from_before_torch_1_6_is_read_too(tmp_path: Path):
    """It cannot be mapped."""
    path = tmp_path / "old.pt"
    torch.save(state(), path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_state(path)["bias"], torch.ones(3))


def test_a_pickle_that_wants_to_run_code_is_refused_and_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Weight files come from strangers."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt"
    torch.save({"weight": RunsCode()}, path)
    with pytest.raises(TokenizerError, match="cannot be read"):
        read_state(path)
    assert not (tmp_path / "made-by-a-pickle").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
@pytest.mark.parametrize("kept", [0, 40, -30])
def test_a_file_that_was_cut_is_an_error_that_says_so(tmp_path: Path, name: str, kept: int):
    """And one that is a pointer to a file, or another pickle."""
    path = tmp_path / name
    save_file(state(), path) if path.suffix == ".safetensors" else torch.save(state(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(TokenizerError, match="was the download cut"):
        read_state(path)


def test_tensors_are_taken_out_from_under_a_trainers_key(tmp_path: Path):
    """The first key that is there; flat files stay as they are."""
    nested = {"generator": state(), "optim_g": {"lr": 1.0}, "loss": 0.5}
    assert set(flat_state(nested, tmp_path, nested_under=("model", "generator"))) == {"weight", "bias"}
    assert set(flat_state(state(), tmp_path, nested_under=("generator",))) == {"weight", "bias"}


@pytest.mark.parametrize("data", [{}, [1], {"loss": 0.5}, {"weight": torch.ones(1), "step": 3}, None])
def test_what_is_no_state_dict_is_an_error(tmp_path: Path, data: object):
    """Also one whose tensors lie under a key that nobody named."""
    with pytest.raises(TokenizerError, match="expected tensors by key"):
        flat_state(data, tmp_path)


def test_weights_are_loaded_also_into_a_module_without_values():
    """On ``meta`` the tensors of the file become the module's own."""
    for module in (nn.Linear(2, 3), nn.Linear(2, 3, device="meta")):
        load_strictly(module, state(), where="a file")
        assert torch.equal(module.weight, state()["weight"]) and module.weight.device.type == "cpu"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": state()["weight"]}, "1 missing: bias"),
        (state() | {"scale": torch.ones(1)}, "1 not known: scale"),
        (state() | {"bias": torch.ones(4)}, r"1 of another shape: bias \(4,\) instead of \(3,\)"),
    ],
)
def test_one_key_too_few_too_many_or_misshaped_is_named(changed: dict[str, torch.Tensor], message: str):
    """And nothing is loaded."""
    module = nn.Linear(2, 3)
    before = module.weight.detach().clone()
    with pytest.raises(TokenizerError, match=message):
        load_strictly(module, changed, where="a file")
    assert torch.equal(module.weight, before)


def test_all_faults_are_told_at_once_and_long_lists_are_cut():
    """Five keys are enough to know the wrong file by."""
    with pytest.raises(TokenizerError, match=r"9 missing: k0, k1, k2, k3, k4 \.\.\.; 1 not known: weight"):
        check_keys({f"k{number}": (1,) for number in range(9)}, {"weight": torch.ones(1)}, where="a file")


@given(st.permutations(["a", "b", "c"]))
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(order: list[str]):
    """Nor on how a tensor lies in memory."""
    tensors = {"a": torch.ones(2, 3), "b": torch.zeros(1), "c": torch.arange(6).reshape(2, 3).t()}
    shuffled = {key: tensors[key].contiguous() for key in order}
    assert state_fingerprint("x", {"p": 1}, shuffled) == state_fingerprint("x", {"p": 1}, tensors)


def test_a_fingerprint_changes_with_name_facts_keys_values_shapes_and_types():
    """Each of them changes codes, or may."""
    one = torch.ones(2, 3)
    prints = {
        state_fingerprint(name, facts, tensors)
        for name, facts, tensors in [
            ("x", {"p": 1}, {"a": one}),
            ("y", {"p": 1}, {"a": one}),
            ("x", {"p": 2}, {"a": one}),
            ("x", {"p": 1}, {"b": one}),
            ("x", {"p": 1}, {"a": one * 2}),
            ("x", {"p": 1}, {"a": one.t()}),
            ("x", {"p": 1}, {"a": one.half()}),
            ("x", {"p": 1}, {"a": torch.tensor(1.0)}),
        ]
    }
    assert len(prints) == 8 and all(len(one) == 16 for one in prints)


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path):
    """More than one block of it."""
    data = bytes(range(256)) * (1 << 15)
    (tmp_path / "file").write_bytes(data)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_a_file_that_is_not_named_or_not_there_is_an_error_with_its_option(tmp_path: Path):
    """What it is, where it was looked for, and where to read on."""
    with pytest.raises(ConfigError, match=r"options\.vit: expected the path of the ViT"):
        require_file(None, option="options.vit", purpose="the ViT")
    with pytest.raises(TokenizerError, match=r"options\.vit = .*gone.*the ViT"):
        require_file(tmp_path / "gone", option="options.vit", purpose="the ViT")
    assert require_file(tmp_path, option="options.vit", purpose="a folder") == tmp_path


def test_a_device_is_one_that_this_machine_has():
    """``auto`` is always one."""
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    for name, message in (("gpu", "expected auto, cpu, cuda"), ("cuda:99", "use auto or cpu")):
        with pytest.raises(ConfigError, match=message):
            choose_device(name)


def test_there_is_no_bfloat16_among_the_precisions():
    """It changes up to a quarter of the codes."""
    assert CodecOptions().precision == "fp32"
    with pytest.raises(ValidationError, match="precision"):
        CodecOptions(precision="bf16")  # pyright: ignore[reportArgumentType]


def test_a_plain_pickle_of_tensors_is_no_weight_file(tmp_path: Path):
    """Not even a harmless one: only torch's own reader restricts what it may build."""
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(RunsCode(), protocol=2))
    with pytest.raises(TokenizerError, match="cannot be read"):
        read_state(tmp_path / "plain.pt")
