"""Vocabularies, the training stream and the held-out set, all drawn from the grammar."""

import hashlib
import random

import torch

import grammar
from model import BOS, EOS, PAD, SPECIAL_TOKENS

HELD_OUT_SIZE = 1000
VOCABULARY_SAMPLE = 400_000
POOL = 16384  # sentences sorted by length at once, so that batches need little padding


def is_reserved(english):
    """Whether a sentence belongs to the held-out twentieth of all sentences.

    The final mark does not count: "the car is red" and "the car is red ." stay on one side.
    """
    words = " ".join(w for w in english if w not in ".!?")
    return hashlib.sha256(words.encode()).digest()[0] % 20 == 0


def build_vocabularies(seed):
    """Every token the grammar produces, in alphabetical order after the special tokens."""
    rng = random.Random(seed)
    english, french = set(), set()
    for _ in range(VOCABULARY_SAMPLE):
        en, fr = grammar.generate(rng)
        english.update(en)
        french.update(fr)
    return SPECIAL_TOKENS + sorted(english), SPECIAL_TOKENS + sorted(french)


def held_out_set(seed):
    """Distinct reserved sentences, as many as possible from every construction in turn."""
    rng = random.Random(seed)
    chosen = {}
    while len(chosen) < HELD_OUT_SIZE:
        for construction in grammar.CONSTRUCTIONS:
            for _ in range(2000):  # small constructions run out of reserved sentences
                en, fr = grammar.generate(rng, construction)
                if is_reserved(en) and " ".join(en) not in chosen:
                    chosen[" ".join(en)] = grammar.join_french(fr)
                    break
    return list(chosen.items())[:HELD_OUT_SIZE]


def pad(sentences):
    length = max(map(len, sentences))
    return torch.tensor([s + [PAD] * (length - len(s)) for s in sentences])


class TrainingStream:
    """An endless stream of batches (source, target input, target output)."""

    def __init__(self, source_ids, target_ids, batch, seed):
        self.source_ids, self.target_ids = source_ids, target_ids
        self.batch = batch
        self.rng = random.Random(seed)

    def __iter__(self):
        while True:
            pool = []
            while len(pool) < POOL:
                en, fr = grammar.generate(self.rng)
                if not is_reserved(en):
                    pool.append(([self.source_ids[w] for w in en],
                                 [self.target_ids[w] for w in fr]))
            pool.sort(key=lambda pair: (len(pair[0]), len(pair[1])))
            starts = list(range(0, POOL, self.batch))
            self.rng.shuffle(starts)
            for start in starts:
                pairs = pool[start:start + self.batch]
                yield (pad([en + [EOS] for en, _ in pairs]), pad([[BOS] + fr for _, fr in pairs]),
                       pad([fr + [EOS] for _, fr in pairs]))
