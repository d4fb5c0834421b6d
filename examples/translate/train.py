"""Train the translator on sentences drawn from the grammar, then evaluate and write it.

    python3 train.py                     retrain and rewrite every data file of this folder
    python3 train.py --evaluate          only evaluate weights.safetensors on heldout.tsv
"""

import argparse
import itertools
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

import safetensors
from dataset import TrainingStream, build_vocabularies, held_out_set, is_reserved
from grammar import join_french
from model import EOS, PAD, SPECIAL_TOKENS, Attention, Config, Translator, attend, attend_int8

FOLDER = Path(__file__).resolve().parent


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--steps", type=int, default=16000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=500, help="steps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the data files go")
    return parser.parse_args()


def train(model, stream, arguments):
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate, betas=(0.9, 0.98),
                                  weight_decay=0.01)
    # Linear warm-up, then linear decay to zero.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(
        (step + 1) / arguments.warmup,
        (arguments.steps - step) / (arguments.steps - arguments.warmup)))
    loss_function = nn.CrossEntropyLoss(ignore_index=PAD)
    start, total, every = time.time(), 0.0, 500
    for step, (source, target, expected) in enumerate(itertools.islice(stream, arguments.steps), 1):
        loss = loss_function(model(source, target).flatten(0, 1), expected.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % every == 0:
            elapsed = time.time() - start
            print(f"step {step:6d}  loss {total / every:.5f}  {elapsed:6.0f} s", flush=True)
            total = 0.0


def translate_all(model, sources, kernel=attend):
    """Greedy translations in the order of sources: lists of ids, and smallest logit margins."""
    by_length = defaultdict(list)
    for index, source in enumerate(sources):
        by_length[len(source)].append(index)
    results, margins = [None] * len(sources), [None] * len(sources)
    Attention.kernel = staticmethod(kernel)
    for indices in by_length.values():
        outputs, batch_margins = model.translate(torch.tensor([sources[i] for i in indices]))
        for index, output, margin in zip(indices, outputs, batch_margins):
            results[index], margins[index] = output, margin
    Attention.kernel = staticmethod(attend)
    return results, margins


def evaluate(model, pairs, source_ids, target_words):
    sources = [[source_ids[w] for w in en.split()] + [EOS] for en, _ in pairs]
    exact, margins = translate_all(model, sources)
    rounded, _ = translate_all(model, sources, attend_int8)
    french = [join_french([target_words[i] for i in ids]) for ids in exact]
    french_int8 = [join_french([target_words[i] for i in ids]) for ids in rounded]
    correct = 0
    for (en, expected), output in zip(pairs, french):
        correct += output == expected
        if output != expected:
            print(f"wrong: {en}\n   got {output}\n   not {expected}")
    count = len(pairs)
    correct_int8 = sum(o == expected for (_, expected), o in zip(pairs, french_int8))
    agreement = sum(a == b for a, b in zip(french, french_int8))
    margins.sort()
    print(f"exact match             {correct}/{count}")
    print(f"exact match, int8       {correct_int8}/{count}")
    print(f"int8 agrees with f32    {agreement}/{count}")
    print(f"smallest logit margin   {margins[0]:.2f}, 1st percentile {margins[count // 100]:.2f}, "
          f"median {margins[count // 2]:.2f}")


def save(folder, model):
    config = asdict(model.config)
    metadata = {**config, "format": "pt", "norm": "pre", "activation": "relu",
                "positions": "sinusoidal", "embedding_scale": "sqrt(d_model)",
                "output_projection": "target_embedding", "pad": 0, "bos": 1, "eos": 2}
    safetensors.save(folder / "weights.safetensors", model.state_dict(), metadata)


def load(folder):
    tensors, metadata = safetensors.load(folder / "weights.safetensors")
    config = Config(**{name: field.type(metadata[name])
                       for name, field in Config.__dataclass_fields__.items()})
    model = Translator(config)
    model.load_state_dict(tensors)
    return model


def write_lines(path, lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def read_lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def train_and_save(arguments):
    torch.manual_seed(arguments.seed)
    source_words, target_words = build_vocabularies(arguments.seed)
    pairs = held_out_set(arguments.seed + 1)
    # The stream drops every reserved sentence, so it cannot meet the held-out ones.
    assert all(is_reserved(en.split()) for en, _ in pairs)
    assert not is_reserved("the red car is fast".split())
    assert not is_reserved("hello world !".split())
    source_ids = {word: i for i, word in enumerate(source_words)}
    target_ids = {word: i for i, word in enumerate(target_words)}
    write_lines(arguments.folder / "vocab.en.txt", source_words)
    write_lines(arguments.folder / "vocab.fr.txt", target_words)
    write_lines(arguments.folder / "heldout.tsv", ["\t".join(pair) for pair in pairs])

    model = Translator(Config(len(source_words), len(target_words)))
    print(f"{len(source_words) - len(SPECIAL_TOKENS)} English and "
          f"{len(target_words) - len(SPECIAL_TOKENS)} French tokens, "
          f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    train(model, TrainingStream(source_ids, target_ids, arguments.batch, arguments.seed + 2),
          arguments)
    save(arguments.folder, model)


def main():
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if not arguments.evaluate:
        train_and_save(arguments)
    source_ids = {word: i for i, word in enumerate(read_lines(arguments.folder / "vocab.en.txt"))}
    target_words = read_lines(arguments.folder / "vocab.fr.txt")
    pairs = [line.split("\t") for line in read_lines(arguments.folder / "heldout.tsv")]
    evaluate(load(arguments.folder), pairs, source_ids, target_words)


if __name__ == "__main__":
    main()
