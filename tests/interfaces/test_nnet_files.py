"""``.nnet`` files: the network that they hold, and files that are refused with their line."""

import numpy as np
import pytest
import torch

from repairopt.errors import SpecFileError
from repairopt.interfaces.specfile.given_model import load_given
from repairopt.interfaces.specfile.nnet_file import load_nnet, read_nnet

TEXT = """// a comment
2,2,2,3,
2,3,2,
0,
-10,0,
10,1,
4.0,0.5,7.0,
2.0,0.25,3.0,
1,2,
-1,0.5,
0,1,
0.5,
-0.5,
1,
1,-1,2,
0,1,-3,
0.25,
-2,
"""


def test_raw_inputs_are_normalized_and_scores_scaled(tmp_path):
    path = tmp_path / "net.nnet"
    path.write_text(TEXT)
    x = np.array([[3.0, 0.75], [-8.0, 0.0], [9.5, 0.125]])
    hidden = np.maximum(((x - [4, 0.5]) / [2, 0.25]) @ np.array([[1, -1, 0], [2, 0.5, 1]]) + [0.5, -0.5, 1], 0)
    scores = hidden @ np.array([[1, 0], [-1, 1], [2, -3]]) + [0.25, -2]
    raw = load_nnet(path)
    assert np.allclose(raw(torch.tensor(x, dtype=torch.float32)).detach(), 3 * scores + 7)
    normalized = torch.tensor((x - [4, 0.5]) / [2, 0.25], dtype=torch.float32)
    assert np.allclose(load_nnet(path, raw=False)(normalized).detach(), scores)
    again = load_given(str(path), None)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in raw.state_dict().items())
    assert (read_nnet(path).lower.tolist(), read_nnet(path).upper.tolist()) == ([-10, 0], [10, 1])


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("2,3,2,\n0", "2,3,2.5,\n0", 3, "whole numbers"),
        ("2.0,0.25,3.0", "2.0,0,3.0", 8, "a range is not above 0"),
        ("-1,0.5,", "-1,0.5,3,", 10, "3 numbers; expected weights, 2 of them"),
        ("0.25,\n-2,\n", "0.25,\n", 17, "the file ends where one bias should follow"),
        ("1,-1,2", "1,one,2", 15, "'one'"),
        ("4.0,0.5", "4.0,nan", 7, "finite numbers"),
    ],
)
def test_malformed_files_are_refused_with_their_line(tmp_path, old, new, line, reason):
    path = tmp_path / "net.nnet"
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(SpecFileError, match=f"net.nnet', line {line}: ") as caught:
        read_nnet(path)
    assert reason in str(caught.value)


@pytest.mark.data
def test_the_nnet_and_the_onnx_file_of_a_network_agree(data_dir):
    pytest.importorskip("onnxruntime")
    folder = data_dir / "provable"
    x = torch.rand(200, 5) - 0.5
    scores = load_given(str(folder / "acasxu_2_9.onnx"), None)(x.reshape(-1, 1, 1, 5)).detach()
    assert torch.allclose(load_nnet(folder / "acasxu_2_9.nnet", raw=False)(x), scores, atol=1e-5)
