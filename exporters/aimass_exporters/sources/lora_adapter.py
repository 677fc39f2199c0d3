"""LoRA adapters as PEFT saves them: read from a folder, merged into a model's weights, or kept beside them.

Must not know what the model is for. Source: PEFT's adapter format (`adapter_config.json` beside
`adapter_model.safetensors`); the update is that of LoRA, Hu et al. 2021.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from aimass_exporters.errors import InvalidCheckpoint, PickleRefused
from aimass_exporters.sources.json_file import read_object

CONFIG_FILE, WEIGHTS_FILE, PICKLED_FILE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B)(\.weight)?$")
_UNKNOWN_KINDS = ("use_dora", "use_qalora", "megatron_config", "trainable_token_indices")


@dataclass(slots=True)
class Factors:
    """The two small matrices whose product is added to one weight."""

    down: torch.Tensor | None = None  # [rank, in]
    up: torch.Tensor | None = None  # [out, rank]


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """What a folder says: factors by the name of their module, and weights that replace the model's own."""

    folder: Path
    config: Mapping[str, Any]
    factors: Mapping[str, Factors]
    replaced: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Biases and whole modules that were trained beside the factors, by the name of the parameter."""

    @property
    def name(self) -> str:
        """The adapter's name: that of its folder."""
        return self.folder.resolve().name

    def scale_of(self, module: str, rank: int) -> float:
        """Return what the product of a module's factors is multiplied by."""
        alpha = _by_pattern(self.config.get("alpha_pattern"), module, self.config["lora_alpha"])
        return float(alpha / (rank**0.5 if self.config.get("use_rslora") else rank))


def read_adapter(folder: Path) -> LoraAdapter:
    """Read an adapter. Raises `InvalidCheckpoint` for what is not a LoRA adapter, `PickleRefused`."""
    if not (folder / CONFIG_FILE).is_file():
        raise InvalidCheckpoint(folder, detail=f"expected the folder of an adapter with {CONFIG_FILE}")
    config = read_object(folder / CONFIG_FILE)
    _check_kind(folder, config)
    factors: dict[str, Factors] = {}
    replaced: dict[str, torch.Tensor] = {}
    for key, tensor in _tensors(folder).items():
        name = key.removeprefix(_PREFIX).replace(".base_layer.", ".")
        found = _FACTOR.match(name)
        if found is None:
            replaced[name] = tensor
        else:
            pair = factors.setdefault(found["module"], Factors())
            setattr(pair, "down" if found["part"].endswith("A") else "up", tensor)
    if not factors:
        raise InvalidCheckpoint(folder, detail=f"expected LoRA factors in {WEIGHTS_FILE}, found none")
    return LoraAdapter(folder, config, factors, replaced)


def merge_adapter(model: PreTrainedModel, adapter: LoraAdapter) -> None:
    """Add an adapter to a model's weights, in place.

    Raises `InvalidCheckpoint` when it names a module that the model has not, or its sizes do not fit.
    """
    _refuse_tied(model, adapter)
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, tensor in adapter.replaced.items():
            _fitting(adapter, name, parameters.get(name), tensor.shape).copy_(tensor)
        for name, pair in adapter.factors.items():
            delta = _delta(adapter, name, pair, modules.get(name))
            weight = getattr(modules.get(name), "weight", None)
            _fitting(adapter, f"{name}.weight", weight, delta.shape).add_(delta)


@contextmanager
def merged(model: PreTrainedModel, adapter: LoraAdapter) -> Iterator[None]:
    """Merge an adapter inside the block; after it the weights are those of before to the last bit.

    Errors as `merge_adapter`.
    """
    changed = {*adapter.replaced, *(f"{module}.weight" for module in adapter.factors)}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    before = {name: parameters[name].detach().clone() for name in changed if name in parameters}
    try:
        merge_adapter(model, adapter)
        yield
    finally:
        with torch.no_grad():
            for name, weight in before.items():
                parameters[name].copy_(weight)


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to one linear layer: `x @ down @ up`, its scale folded in."""

    down: torch.Tensor  # [in, rank]
    up: torch.Tensor  # [rank, out]


def low_rank_layers(model: PreTrainedModel, adapter: LoraAdapter) -> dict[str, LowRank]:
    """Return what an adapter adds to each linear layer of a model, by the layer's name.

    Raises `InvalidCheckpoint` as `merge_adapter` does, and for what cannot stay beside the weights:
    embeddings, and weights that replace the model's.
    """
    _refuse_tied(model, adapter)
    modules = dict(model.named_modules())
    inseparable = [
        *adapter.replaced,
        *(name for name in adapter.factors if isinstance(modules.get(name), torch.nn.Embedding)),
    ]
    if inseparable:
        detail = (
            f"{inseparable[0]} cannot be kept beside the model's weights: merge this adapter with --adapter"
        )
        raise InvalidCheckpoint(adapter.folder, detail=detail)
    return {name: _low_rank(adapter, name, pair, modules.get(name)) for name, pair in adapter.factors.items()}


def _low_rank(adapter: LoraAdapter, name: str, pair: Factors, module: torch.nn.Module | None) -> LowRank:
    delta = _delta(adapter, name, pair, module)
    _fitting(adapter, f"{name}.weight", getattr(module, "weight", None), delta.shape)
    assert pair.down is not None, "checked with the delta"
    assert pair.up is not None, "checked with the delta"
    return LowRank(pair.down.T, pair.up.T * adapter.scale_of(name, pair.down.shape[0]))


def _check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        detail = f"expected an adapter of peft_type LORA, got {config.get('peft_type')}"
        raise InvalidCheckpoint(folder, detail=detail)
    if unknown := [kind for kind in _UNKNOWN_KINDS if config.get(kind)]:
        detail = f"expected plain or rank-stabilised LoRA, got one with {', '.join(unknown)}"
        raise InvalidCheckpoint(folder, detail=detail)
    if not isinstance(config.get("lora_alpha"), int | float):
        detail = f"expected a number as lora_alpha, got {config.get('lora_alpha')}"
        raise InvalidCheckpoint(folder, detail=detail)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    if not (folder / WEIGHTS_FILE).is_file():
        if (folder / PICKLED_FILE).is_file():
            raise PickleRefused(folder, files=[PICKLED_FILE])
        raise InvalidCheckpoint(folder, detail=f"expected the adapter's weights in {WEIGHTS_FILE}")
    try:
        return {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    except (SafetensorError, OSError) as error:
        raise InvalidCheckpoint(folder, detail=f"{WEIGHTS_FILE} is not safetensors: {error}") from error


def _refuse_tied(model: PreTrainedModel, adapter: LoraAdapter) -> None:
    """Refuse to change a matrix that is input and output embedding at once: the adapter meant one of them."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if outputs is None or inputs.weight is not outputs.weight:
        return
    changed = {*adapter.factors, *(name.rpartition(".")[0] for name in adapter.replaced)}
    tied = [name for name, module in model.named_modules() if module in (inputs, outputs) and name in changed]
    if tied:
        detail = f"it changes {tied[0]}, whose weights the model's other embedding shares"
        raise InvalidCheckpoint(adapter.folder, detail=detail)


def _delta(adapter: LoraAdapter, name: str, pair: Factors, module: torch.nn.Module | None) -> torch.Tensor:
    """Return what is added to a module's weight, in the layout of that weight."""
    if pair.down is None or pair.up is None:
        raise InvalidCheckpoint(adapter.folder, detail=f"{name} has one of its two factors only")
    if pair.up.shape[1:] != pair.down.shape[:1]:
        detail = f"the factors of {name} do not fit: {tuple(pair.up.shape)}, {tuple(pair.down.shape)}"
        raise InvalidCheckpoint(adapter.folder, detail=detail)
    delta = pair.up @ pair.down * adapter.scale_of(name, pair.down.shape[0])  # [out, in]
    # GPT-2 keeps its linear layers transposed, and an embedding is a layer from tokens to numbers.
    return delta.T if isinstance(module, Conv1D | torch.nn.Embedding) else delta


def _fitting(adapter: LoraAdapter, name: str, weight: torch.Tensor | None, shape: torch.Size) -> torch.Tensor:
    if weight is None:
        raise InvalidCheckpoint(adapter.folder, detail=f"it changes {name}, which the model has not")
    if weight.shape != shape:
        detail = f"{name}: expected {tuple(weight.shape)} for this model, got {tuple(shape)}"
        raise InvalidCheckpoint(adapter.folder, detail=detail)
    return weight


def _by_pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """Return what the first pattern that fits the end of a module's name says, as PEFT looks it up."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
