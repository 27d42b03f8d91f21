"""What PyTorch makes of the folder that tch_export saved: check.py FOLDER PROBE BY_TCH"""

import json
import pathlib
import sys

import torch
from safetensors.torch import load_file
from torch import nn

TOLERANCE = 1e-4


class Classifier(nn.Module):
    def __init__(self, hidden, classes):
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(2, hidden), nn.Linear(hidden, hidden)])
        self.head = nn.Linear(hidden, classes)

    def forward(self, x):
        for layer in self.hidden:
            x = layer(x).relu()
        return self.head(x)


folder, probe, by_tch = sys.argv[1:]
folder = pathlib.Path(folder)
index = json.loads((folder / "model.safetensors.index.json").read_text())
weights = {}
for shard in sorted(set(index["weight_map"].values())):
    weights |= load_file(folder / shard)
assert weights.keys() == index["weight_map"].keys()

expected = load_file(by_tch)
assert weights.keys() == expected.keys()
for name, weight in weights.items():
    assert torch.equal(weight.view(torch.int32), expected[name].view(torch.int32)), name

classes, hidden = weights["head.weight"].shape
model = Classifier(hidden, classes)
model.load_state_dict(weights, strict=True)
probe = load_file(probe)
with torch.no_grad():
    difference = (model(probe["points"]) - probe["logits"]).abs().max().item()
print(f"python: weights identical, largest difference {difference:e}")
assert difference <= TOLERANCE
