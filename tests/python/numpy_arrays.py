"""numpy's side of what ndarray saves and loads: usage: numpy_arrays.py OURS THEIRS

Both sides make the same arrays by one rule, in every dtype that safetensors.numpy has and in several
layouts. Those in the file OURS are compared with numpy's; numpy's are written to the file THEIRS.
Prints how many arrays were equal.
"""

import sys

import numpy as np
from safetensors.numpy import _TYPES, load_file, save_file


def elements(dtype):
    count = np.arange(24)
    if dtype is bool:
        count = count % 3 == 1
    elif dtype is np.complex64:
        count = count - 0.5j * count
    return count.astype(dtype).reshape(2, 3, 4)


def layouts(array):
    yield "ordinary", array
    yield "transposed", array.T
    yield "reversed", array[::-1, :, ::-1]
    yield "broadcast", np.broadcast_to(array[1, 2], (3, 4))
    yield "second", array[:, :, 1::2]
    yield "scalar", array[1, 2, 3].reshape(())
    yield "empty", array[:, :0]


expected = {
    f"{name}.{layout}": array
    for name, dtype in _TYPES.items()
    for layout, array in layouts(elements(dtype))
}
ours = load_file(sys.argv[1])
if ours.keys() != expected.keys():
    sys.exit(f"other names: {sorted(ours.keys() ^ expected.keys())}")
for name, array in expected.items():
    found = ours[name]
    if (found.dtype, found.shape) != (array.dtype, array.shape) or not np.array_equal(found, array):
        sys.exit(f"{name}: expected {array!r}, found {found!r}")
# The package writes memory as it lies, whatever the strides.
save_file({name: np.ascontiguousarray(array).reshape(array.shape) for name, array in expected.items()}, sys.argv[2])
print(f"equal {len(expected)}")
