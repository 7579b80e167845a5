"""The encoding of an empty prompt: all that a decoder needs of its text encoder."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError
from ..files.assemble import EmptyNetwork
from ..files.folder import ModelFolder
from ..files.weights import Reader, Tensors, looks
from .diffusers_networks import network_config, without_weights

CONFIG_FILE = "text_encoder/config.json"

_STEMS = ("model", "pytorch_model")
_WORDS = "tokenizer/vocab.json"

# What transformers 4 and published files put before every name; transformers 5 may leave it out.
_PREFIX = "text_model."


class PromptEncoder:
    """A text encoder without its weights, and the token ids of the prompt.

    Raises:
        CheckpointError: transformers cannot build it, or it does not have such tokens.
    """

    def __init__(self, config: Mapping[str, Any], token_ids: Sequence[int], source: Path) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel

        def make() -> Any:
            known: Any = CLIPTextConfig.from_dict(dict(config))  # typed as any config
            return CLIPTextModel(known)

        failure = f"transformers cannot make the text encoder of {source}"
        self._network: EmptyNetwork[Any] = EmptyNetwork(
            lambda _: without_weights(make, failure),
            nn,
            source,
            lambda name: (_full_name(name),),
            dtype=torch.float32,
        )
        known = self._network.module.config
        if max(token_ids) >= known.vocab_size:
            raise CheckpointError(
                f"{source} knows {known.vocab_size} tokens, and the tokenizer beside it makes token "
                f"{max(token_ids)}: they cannot be read together"
            )
        self._token_ids = torch.tensor([token_ids])
        self.shape = (1, len(token_ids), int(known.hidden_size))

    def check(self, stand_ins: Tensors) -> None:
        """Refuse weights that do not fit; see `EmptyNetwork.check`."""
        self._network.check(_with_full_names(stand_ins))

    @torch.inference_mode()
    def encode(self, tensors: Tensors) -> torch.Tensor | None:
        """Return what the encoder makes of the prompt, float32 ``[1, tokens, width]``.

        From stand-ins a stand-in is made, and from no tensors at all nothing.
        """
        given = iter(tensors)
        first = next(given, None)
        if first is None:
            return None
        if first[1].is_meta:
            return torch.empty(self.shape, device="meta")
        whole = _with_full_names(itertools.chain([first], given))
        network = self._network.fill(whole, torch.device("cpu"))
        encoded: torch.Tensor = network(self._token_ids)[0]
        return encoded.clone()


def _full_name(name: str) -> str:
    return _PREFIX + name.removeprefix(_PREFIX)


def _with_full_names(tensors: Tensors) -> Tensors:
    for key, tensor in tensors:
        yield _full_name(key), tensor


class FolderPrompt:
    """The empty prompt of a diffusers folder with a text encoder; its files are checked here."""

    def __init__(self, folder: ModelFolder) -> None:
        source = folder.path / "text_encoder"
        config = network_config(folder, "text_encoder")
        token_ids = _tokens(folder, config["max_position_embeddings"])
        self._encoder = PromptEncoder(config, token_ids, source)
        self._weights = folder.weights(_STEMS, "text_encoder")
        self._encoder.check(self._weights.tensors(looks()))
        self.files = self._weights.files
        self.shape = self._encoder.shape

    def encode(self, read: Reader) -> torch.Tensor | None:
        """Return float32 ``[1, tokens, width]``; see `PromptEncoder.encode`."""
        return self._encoder.encode(self._weights.tensors(read))


def _tokens(folder: ModelFolder, length: int) -> list[int]:
    """Return the token ids of "", filled up to a length."""
    from transformers import CLIPTokenizer

    words = folder.path / "tokenizer"
    if not any((words / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        # transformers would go on with an empty vocabulary, and every picture be a little wrong
        raise CheckpointError(
            f"{folder.path} has a text encoder, but no vocab.json in {words.name}"
        )
    try:
        tokenizer = CLIPTokenizer.from_pretrained(words, local_files_only=True)
        if tokenizer.model_max_length != length:  # its config is damaged, and may pad otherwise too
            raise ValueError(f"{length} tokens are encoded, {tokenizer.model_max_length} made")
        ids: list[int] = tokenizer("", padding="max_length", max_length=length).input_ids
        known = folder.read_json(_WORDS) if folder.has(_WORDS) else None
        made = {tokenizer.convert_ids_to_tokens(i): i for i in ids}
        if known is not None and not made.items() <= known.items():
            raise ValueError(f"{_WORDS} lacks {' or '.join(made)}")  # transformers would add them
    except Exception as error:  # of any kind: tokenizers raises nothing narrower
        raise CheckpointError(
            f"{words}, the tokenizer of text_encoder, cannot be read: {error!r:.200}"
        ) from error
    return ids
