"""explorer.json and static/explorer.jpg, from a stored run and the CIFAR-10 images under HCNN_DATA.

    python site/explorer.py

is needed only where interpretation.npz of RUN has changed; both files are committed.
"""

import base64
import json
from pathlib import Path

import numpy as np
from PIL import Image

from hcnn import paths
from hcnn.companion.interpretation.storage import close, load_interpretation

HERE = Path(__file__).resolve().parent
RUN = paths.RUNS / "cifar10-hcnn-zeros-s0-49df8eaa"
SIDE = 24  # thumbnails in a row of the sprite sheet


def describe(found, classes):
    """The content of explorer.json for a stored interpretation, as plain values.

    sprites: [training image, class, what the network says], a row a thumbnail; images: thumbnails of the images x.
    nearest, distance [depth][image][tau]: the thumbnail of x^tau and its distance; close [depth]: the largest distance
    that is near. arrays [depth][image]: base64 of bytes, 1 + taus arrays of shape [depth], xbar_j of x and of each
    x^tau, 255 for the largest number of them all.
    """
    depths = found["depths"].tolist()
    base = found["image_index"].transpose(0, 2, 1)  # (depths, images, taus), positions in the database
    known = {int(i): [int(label), int(said)] for which, labels, predictions in (
        (found["images"], found["image_labels"], found["image_predictions"]),
        (found["database"][base], found["labels"][base], found["predictions"][base]))
        for i, label, said in zip(which.flat, labels.flat, predictions.flat)}
    order = {i: place for place, i in enumerate(sorted(known))}
    return dict(
        classes=classes, depths=depths, taus=found["taus"].tolist(), side=SIDE,
        sprites=[[i, *known[i]] for i in order], images=[order[i] for i in found["images"].tolist()],
        nearest=[[[order[int(i)] for i in row] for row in rows] for rows in found["database"][base]],
        distance=[[[float(f"{d:.3g}") for d in row] for row in rows]
                  for rows in found["image_distance"].transpose(0, 2, 1).astype(float)],
        close=[float(f"{d:.3g}") for d in close(found)], shapes=[found[f"arrays_{j}"].shape[1:] for j in depths],
        arrays=[[_bytes(found[f"arrays_{j}"][f], found[f"nearest_arrays_{j}"][:, f])
                 for f in range(len(found["images"]))] for j in depths])


def _bytes(own, near):
    arrays = np.concatenate([own[None], near]).astype(float)
    grey = 255 * (arrays - arrays.min()) / np.ptp(arrays)
    return base64.b64encode(grey.round().astype(np.uint8).tobytes()).decode()


def sheet(images):
    """uint8 images (n, 3, 32, 32) in rows of SIDE as one JPEG; its blocks of 8 x 8 end where images do."""
    rows = -(-len(images) // SIDE)
    tiles = np.zeros((rows * SIDE, *images.shape[1:]), np.uint8)
    tiles[:len(images)] = images
    tiles = tiles.reshape(rows, SIDE, 3, 32, 32).transpose(0, 3, 1, 4, 2).reshape(rows * 32, SIDE * 32, 3)
    Image.fromarray(tiles).save(HERE / "static" / "explorer.jpg", quality=85, subsampling=0, optimize=True)


def main():
    from hcnn.data.datasets import load_dataset
    data = load_dataset("cifar10")
    shown = describe(load_interpretation(RUN), list(data.classes))
    (HERE / "explorer.json").write_text(json.dumps(shown, separators=(",", ":")) + "\n", encoding="utf-8")
    sheet(data.train_images[[i for i, *_ in shown["sprites"]]].numpy())


if __name__ == "__main__":
    main()
