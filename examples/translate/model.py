"""A small encoder-decoder Transformer, written out so that each line maps to one C++ step.

Pre-norm layers: x + attention(norm(x)), x + feed_forward(norm(x)); one more norm after the last
layer of each stack.  Vectors are rows; a Linear computes x @ weight.T + bias.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

PAD, BOS, EOS = 0, 1, 2
SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>"]


@dataclass(frozen=True)
class Config:
    source_vocabulary: int
    target_vocabulary: int
    d_model: int = 96
    heads: int = 4
    d_ff: int = 128
    encoder_layers: int = 2
    decoder_layers: int = 2
    max_len: int = 32  # tokens on either side, <bos> or <eos> included
    norm_eps: float = 1e-5


def attend(query, keys, values, mask=None):
    """Softmax attention over (batch, heads, tokens, head dimension); mask is True where hidden."""
    scores = query @ keys.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(mask, -math.inf)
    return scores.softmax(-1) @ values


def attend_int8(query, keys, values, mask=None):
    """`attend` with the rounding of an int8 kernel.

    Keys and values lose their mean over tokens before rounding: the mean key shifts all the
    scores of a row alike, and the mean value is added back to the output.
    """
    assert mask is None
    keys = keys - keys.mean(-2, keepdim=True)
    value_mean = values.mean(-2, keepdim=True)
    scores = round_to_int8(query, -1) @ round_to_int8(keys, -1).transpose(-1, -2)
    scores = scores / math.sqrt(query.shape[-1])
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    total = weights.sum(-1, keepdim=True)
    weights = (weights * 255).round() / 255
    return weights @ round_to_int8(values - value_mean, -2) / total + value_mean


def round_to_int8(x, dim):
    """Round to 127 levels each side of zero, with one scale per slice along dim."""
    scale = x.abs().amax(dim, keepdim=True).clamp_min(1e-12) / 127
    return (x / scale).round() * scale


class Attention(nn.Module):
    kernel = staticmethod(attend)

    def __init__(self, config):
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.d_model, config.d_model)
        self.key = nn.Linear(config.d_model, config.d_model)
        self.value = nn.Linear(config.d_model, config.d_model)
        self.output = nn.Linear(config.d_model, config.d_model)

    def split_heads(self, x):
        """(batch, tokens, d_model) to (batch, heads, tokens, head dimension)."""
        batch, tokens, d_model = x.shape
        return x.view(batch, tokens, self.heads, d_model // self.heads).transpose(1, 2)

    def keys_values(self, x):
        return self.split_heads(self.key(x)), self.split_heads(self.value(x))

    def forward(self, x, keys, values, mask=None):
        heads = Attention.kernel(self.split_heads(self.query(x)), keys, values, mask)
        return self.output(heads.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff)
        self.down = nn.Linear(config.d_ff, config.d_model)

    def forward(self, x):
        return self.down(self.up(x).relu())


class EncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x, mask):
        normed = self.attention_norm(x)
        x = x + self.attention(normed, *self.attention.keys_values(normed), mask)
        return x + self.feed_forward(self.feed_forward_norm(x))


class DecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.self_attention = Attention(config)
        self.cross_norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.cross_attention = Attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x, memory_keys_values, self_mask, memory_mask, past=None):
        """past holds the keys and values of earlier tokens; returns x and the extended past."""
        normed = self.self_norm(x)
        keys, values = self.self_attention.keys_values(normed)
        if past is not None:
            keys = torch.cat([past[0], keys], 2)
            values = torch.cat([past[1], values], 2)
        x = x + self.self_attention(normed, keys, values, self_mask)
        x = x + self.cross_attention(self.cross_norm(x), *memory_keys_values, memory_mask)
        return x + self.feed_forward(self.feed_forward_norm(x)), (keys, values)


def sinusoidal_positions(max_len, d_model):
    """positions[p, 2i] = sin(p / 10000^(2i/d_model)), positions[p, 2i+1] the cosine."""
    angle = (torch.arange(max_len, dtype=torch.float64)[:, None]
             / 10000 ** (torch.arange(0, d_model, 2, dtype=torch.float64) / d_model))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1).float()


class Translator(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.source_embedding = nn.Embedding(config.source_vocabulary, config.d_model)
        # Also the output projection: logits = x @ target_embedding.T
        self.target_embedding = nn.Embedding(config.target_vocabulary, config.d_model)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.encoder_norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.decoder_norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.register_buffer("positions", sinusoidal_positions(config.max_len, config.d_model),
                             persistent=False)
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.weight, std=config.d_model ** -0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def embed(self, embedding, tokens, start=0):
        positions = self.positions[start:start + tokens.shape[1]]
        return embedding(tokens) * math.sqrt(self.config.d_model) + positions

    def encode(self, source, mask=None):
        x = self.embed(self.source_embedding, source)
        for layer in self.encoder:
            x = layer(x, mask)
        return self.encoder_norm(x)

    def decode(self, target, memory, self_mask=None, memory_mask=None):
        """Logits for the token that follows each token of target."""
        x = self.embed(self.target_embedding, target)
        for layer in self.decoder:
            x, _ = layer(x, layer.cross_attention.keys_values(memory), self_mask, memory_mask)
        return self.decoder_norm(x) @ self.target_embedding.weight.T

    def forward(self, source, target):
        """Training pass over padded batches."""
        source_mask = (source == PAD)[:, None, None, :]
        length = target.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).triu(1)
        return self.decode(target, self.encode(source, source_mask), causal, source_mask)

    @torch.no_grad()
    def translate(self, source):
        """Greedy decoding of a batch of sources of one length (no padding, so no masks).

        Returns the tokens of each sentence without <bos> and <eos>, and the smallest margin
        between the best and the second logit over its tokens.
        """
        memory = self.encode(source)
        memory_keys_values = [layer.cross_attention.keys_values(memory) for layer in self.decoder]
        past = [None] * len(self.decoder)
        token = torch.full((len(source), 1), BOS)
        finished = torch.zeros(len(source), dtype=torch.bool)
        sentences = [[] for _ in source]
        margins = torch.full((len(source),), math.inf)
        for position in range(self.config.max_len):
            x = self.embed(self.target_embedding, token, position)
            for i, layer in enumerate(self.decoder):
                x, past[i] = layer(x, memory_keys_values[i], None, None, past[i])
            logits = (self.decoder_norm(x) @ self.target_embedding.weight.T)[:, 0]
            best = logits.topk(2)
            margin = best.values[:, 0] - best.values[:, 1]
            margins = torch.where(finished, margins, torch.minimum(margins, margin))
            token = best.indices[:, :1]
            finished |= token[:, 0] == EOS
            if finished.all():
                break
            for sentence, done, word in zip(sentences, finished.tolist(), token[:, 0].tolist()):
                if not done:
                    sentence.append(word)
        return sentences, margins.tolist()
