"""Files that are called `.safetensors` and are something else, made by whoever writes such files.

    foreign_files.py FOLDER

Writes them, and `expected.tsv`: the name of each, and what a message must call it.
"""

import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import sqlite3
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy
import torch

folder = Path(sys.argv[1])
expected = {}


def file(name, what, content):
    name += ".safetensors"
    (folder / name).write_bytes(content)
    expected[name] = what


def made_by(write):
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def tar(buffer):
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("model/weights.bin")
        member.size = 4096
        archive.addfile(member, io.BytesIO(bytes(4096)))


def zipped(buffer):
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.json", "{}")


def database(path):
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (x)")
    connection.close()
    return path.read_bytes()


weights = {"w": torch.arange(6, dtype=torch.float32)}
noise = random.Random(7).randbytes(5000)

# What servers and download tools leave.
for name, text in {
    "entry": "Entry not found",
    "not_found": "404: Not Found",
    "invalid": "Invalid username or password.",
    "gated": "Access to model x/y is restricted. You must be authenticated to access it.",
    "umlauts": "Zugriff verweigert: die Anfrage war größer als erlaubt",
    "readme": "---\nlicense: mit\n---\n# A model\n" * 50,
    "checksums": "0" * 64 + "  model.safetensors\n",
}.items():
    file(name, f"text, `{text.splitlines()[0][:20]}", text.encode())
    file(f"{name}_bom", f"text, `{text.splitlines()[0][:20]}", b"\xef\xbb\xbf" + text.encode())
file("utf16", "text in UTF-16", "Entry not found".encode("utf-16"))
file("html", "a web page", b"<!DOCTYPE html><html><title>Log in</title></html>")
file("html_bom", "a web page", b"\xef\xbb\xbf\r\n<html><body>403</body></html>")
file("xml", "a web page", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>")
for key in ("error", "message", "detail"):
    file(f"json_{key}", "an error message of a server", json.dumps({key: "no"}).encode())
file("lfs", "a git-lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n")
file("zeros", "nothing but zeros", bytes(5000))
file("random", "of no kind that is known here", noise)

# Archives.
file("zip", "a zip archive", made_by(zipped))
file("tar", "a tar archive", made_by(tar))
file("gzip", "a gzip archive", gzip.compress(noise))
file("bzip2", "a bzip2 archive", bz2.compress(noise))
file("xz", "an xz archive", lzma.compress(noise))
file("zstd", "a zstd archive", bytes.fromhex("28b52ffd2420610300") + noise)
file("lz4", "an lz4 archive", bytes.fromhex("04224d186440a7") + noise)
file("7z", "a 7z archive", b"7z\xbc\xaf\x27\x1c\0\x04" + noise)
file("rar", "a rar archive", b"Rar!\x1a\x07\x01\0" + noise)

# Other formats of weights and models.
file("torch_zip", "PyTorch", made_by(lambda to: torch.save(weights, to)))
file("torch_legacy", "a Python pickle", made_by(lambda to: torch.save(weights, to, _use_new_zipfile_serialization=False)))
for protocol in range(2, 6):
    file(f"pickle_{protocol}", "a Python pickle", pickle.dumps({"w": [1.0] * 100}, protocol))
file("npy", "a .npy file", made_by(lambda to: numpy.save(to, numpy.zeros(100))))
file("npz", ".npz", made_by(lambda to: numpy.savez(to, w=numpy.zeros(100))))
file("gguf", "a GGUF file", b"GGUF\x03\0\0\0" + bytes(16) + noise)
file("ggml", "a GGML file", b"tjgg\x03\0\0\0" + noise)
file("hdf5", "an HDF5 file", b"\x89HDF\r\n\x1a\n\0\0\0\0\0\x08\x08\0" + noise)
file("onnx", "ONNX", b"\x08\x08\x12\x07pytorch\x1a\x052.4.0" + noise)
file("msgpack", "Flax", b"\x81\xa6params\x82\xa5Dense\x81\xa6kernel" + noise)
file("tflite", "TensorFlow Lite", b"\x1c\0\0\0TFL3\x14\0\x20\0" + noise)
file("parquet", "a Parquet file", b"PAR1\x15\x04\x15\x10" + noise)
file("arrow", "an Arrow file", b"ARROW1\0\0" + noise)
file("sqlite", "an SQLite database", database(folder / "made.db"))
file("config", "JSON", json.dumps({"architectures": ["BertModel"], "hidden_size": 8}, indent=2).encode())
file("pdf", "a PDF document", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + noise)
file("png", "a PNG image", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + noise)
file("appledouble", "AppleDouble", b"\0\x05\x16\x07\0\x02\0\0Mac OS X        " + noise)
file("elf", "a program", Path(sys.executable).resolve().read_bytes()[:5000])

(folder / "made.db").unlink(missing_ok=True)
lines = [f"{name}\t{what}\n" for name, what in expected.items()]
(folder / "expected.tsv").write_text("".join(lines))
