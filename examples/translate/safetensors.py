"""Reading and writing the safetensors format: header length, JSON header, raw tensors."""

import json
import struct

import torch


def save(path, tensors, metadata):
    """Write f16 tensors.  The header is padded so that the data starts at a multiple of 8."""
    header = {"__metadata__": {name: str(value) for name, value in metadata.items()}}
    offset, chunks = 0, []
    for name, tensor in tensors.items():
        chunk = tensor.half().contiguous().numpy().tobytes()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape),
                        "data_offsets": [offset, offset + len(chunk)]}
        offset += len(chunk)
        chunks.append(chunk)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(chunks))


def load(path):
    """Read f16 tensors as f32: (tensors by name, metadata)."""
    with open(path, "rb") as file:
        content = file.read()
    data = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:data])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        chunk = bytearray(content[data + begin:data + end])
        tensors[name] = torch.frombuffer(chunk, dtype=torch.half).view(entry["shape"]).float()
    return tensors, metadata
