"""python -m hcnn.data.pieces pack | unpack NAME FOLDER: CIFAR in pieces below 64 MB, for a machine without network.

Nothing is lost: the files that come out are those that went in, to the last bit, so that their checksums are the
published ones. Their bytes, each less the one before it, are compressed by LZMA: neighbouring pixels are alike.
"""

import argparse
import hashlib
import io
import json
import lzma
import sys
import tarfile
from pathlib import Path

from hcnn.data.cifar import SOURCES
from hcnn.data.datasets import load_dataset
from hcnn.paths import data_folder

LIMIT = 60_000_000  # bytes of a piece
FILTERS = [{"id": lzma.FILTER_DELTA, "dist": 1}, {"id": lzma.FILTER_LZMA2, "preset": 1}]


def pack(source, out, limit=LIMIT):
    """Write the files of the folder `source` as pieces NAME.00, NAME.01, ... and NAME.json to the folder `out`.

    Returns the paths of the pieces, of at most `limit` bytes each. Raises FileNotFoundError where nothing is to pack.
    """
    source, out = Path(source), Path(out)
    files = sorted(path for path in source.glob("*") if path.is_file())
    if not files:
        raise FileNotFoundError(f"{source} has no files; run `python -m hcnn data` first")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in files:
            archive.add(path, path.name)
    packed = lzma.compress(stream.getvalue(), filters=FILTERS)
    out.mkdir(parents=True, exist_ok=True)
    pieces = [out / f"{source.name}.{i:02}" for i in range(-(-len(packed) // limit))]
    for i, piece in enumerate(pieces):
        piece.write_bytes(packed[i * limit : (i + 1) * limit])
    known = {piece.name: hashlib.sha256(piece.read_bytes()).hexdigest() for piece in pieces}
    (out / f"{source.name}.json").write_text(json.dumps(known, indent=1) + "\n")
    return pieces


def unpack(pieces, target):
    """Write what `pack` has packed from the folder `target` again; `pieces`: the folder of the pieces.

    Raises FileNotFoundError or ValueError naming the piece that is missing or damaged, before anything is written.
    """
    pieces, target, packed = Path(pieces), Path(target), []
    for name, digest in json.loads((pieces / f"{target.name}.json").read_text()).items():
        if not (pieces / name).exists():
            raise FileNotFoundError(f"{pieces / name} is missing")
        packed.append((pieces / name).read_bytes())
        if hashlib.sha256(packed[-1]).hexdigest() != digest:
            raise ValueError(f"{pieces / name} is damaged: copy it again")
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(b"".join(packed)))) as archive:
        archive.extractall(target, filter="data")


def main(arguments=None):
    """Run the command; the exit code is 1 for a piece or file that is missing or damaged."""
    p = argparse.ArgumentParser(prog="python -m hcnn.data.pieces", description=__doc__.partition("\n")[0])
    p.add_argument("what", choices=("pack", "unpack"))
    p.add_argument("name", choices=tuple(SOURCES))
    p.add_argument("folder", help="of the pieces")
    p.add_argument("--dataset-root", help="folder of the data sets (default: data)")
    options = p.parse_args(arguments)
    root = data_folder(options.dataset_root)
    folder = root / SOURCES[options.name].folder
    try:
        if options.what == "pack":
            for piece in pack(folder, options.folder):
                print(f"{piece}: {piece.stat().st_size / 1e6:.1f} MB")
            return 0
        unpack(options.folder, folder)
        checksum = load_dataset(options.name, root, download=False).checksum
        print(f"{folder}: checksum {checksum[:12]} verified")
        return 0
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
