"""A language model: a small transformer over the bytes of Python's own manual; perplexity.

Paragraphs of `pydoc_data.topics` (what `help("for")` shows) of up to 64 bytes; batches are dicts with an attention
mask, as tokenizers return them, and labels that are the next tokens, -100 at padding. No topic is in two parts. From
the repository's root (needs no data; training takes a minute, once):

    amed search --network docs.examples.language_model:build --agent milp --budget memory=0.4 -n 40 --out runs/language
"""

from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

LENGTH, WIDTH, HEADS = 64, 48, 4


def paragraphs(*digits: int) -> list[torch.Tensor]:
    """The paragraphs of all topics whose number ends in one of the digits: a tensor of up to 65 bytes each.

    Some paragraphs are in several topics; only the first of such copies is taken, so that none is in two parts.
    """
    found, known = [], set()
    for number, name in enumerate(sorted(topics)):
        for paragraph in topics[name].split("\n\n"):
            text = paragraph.encode()[: LENGTH + 1]
            if len(text) > 20 and text[:-1] not in known:
                known.add(text[:-1])
                if number % 10 in digits:
                    found.append(torch.tensor(list(text)))
    return found


def batch(texts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Padded inputs (N, T), their mask, and as labels the next byte of each."""
    return {
        "input_ids": pad_sequence([text[:-1] for text in texts], batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(text[:-1]) for text in texts], batch_first=True),
        "labels": pad_sequence([text[1:] for text in texts], batch_first=True, padding_value=-100),
    }


class Block(nn.Module):
    """Causal self-attention and a perceptron, after norms."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x, visible):
        """States (N, T, 48) to the same."""
        q, k, v = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=2))
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class LanguageModel(nn.Module):
    """Two blocks; scores (N, T, 256) of the next byte."""

    def __init__(self):
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)

    def forward(self, input_ids, attention_mask):
        """Scores of the byte after each."""
        length = input_ids.shape[1]
        earlier = torch.ones(length, length, dtype=torch.bool).tril()
        visible = earlier & (attention_mask[:, None, None, :] > 0)
        x = self.bytes(input_ids) + self.places(torch.arange(length))
        for block in self.blocks:
            x = block(x, visible)
        return self.head(self.norm(x))


def trained(steps: int) -> LanguageModel:
    """The network, trained; its weights are kept in runs/."""
    torch.manual_seed(0)
    network, weights = LanguageModel(), Path(f"runs/language-{steps}.pt")
    if weights.exists():
        network.load_state_dict(torch.load(weights, weights_only=True))
        return network
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    texts = paragraphs(1, 2, 3, 6)
    for _ in range(steps):
        inputs = batch([texts[i] for i in torch.randint(len(texts), (32,)).tolist()])
        labels = inputs.pop("labels")
        loss = F.cross_entropy(network(**inputs).flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    weights.parent.mkdir(exist_ok=True)
    torch.save(network.state_dict(), weights)
    return network


def loader(*digits: int) -> DataLoader:
    """Batches of `paragraphs`."""
    return DataLoader(paragraphs(*digits), batch_size=32, collate_fn=batch)


def build(steps: int = 1_200) -> dict:
    """What `amed search --network` asks for."""
    return {"network": trained(steps), "calibration": loader(5), "search": loader(0, 4, 7), "test": loader(8, 9)}
