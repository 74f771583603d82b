"""What we write reads the same in nibabel and in SimpleITK."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxsr.volume.io import Volume, read_volume, write_volume
from jaxsr.volume.orientation import Turn, codes_of

pytestmark = pytest.mark.reference
sitk = pytest.importorskip("SimpleITK")

ALL_48 = [codes_of(Turn(order, flip)) for order in permutations(range(3)) for flip in product((False, True), repeat=3)]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine_of(image):
    """The affine of a SimpleITK image in NIfTI's scanner space."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS @ affine


@pytest.mark.parametrize("codes", ALL_48, ids="".join)
@pytest.mark.parametrize("degrees", [(0, 0, 0), (8, -5, 11), (0.03, 0.01, -0.02)], ids=str)
def test_nibabel_and_simpleitk_see_the_same_voxels_at_the_same_places(tmp_path, codes, degrees):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * (0.7, 1.1, 2.3)
    affine[:3, 3] = (-83.3, -110.7, 21.9)
    path = tmp_path / "v.nii.gz"
    write_volume(path, Volume(np.random.default_rng(0).random((16, 17, 18), np.float32), affine, codes))

    ours, theirs = nib.load(path), sitk.ReadImage(str(path))
    assert (np.asarray(ours.dataobj) == sitk.GetArrayFromImage(theirs).T).all()
    corners = np.array([(i, j, k, 1) for i, j, k in product(*[(0, n - 1) for n in ours.shape])]).T
    # A quaternion in float32 resolves 1.2e-3 rad where its first component is near zero: 0.05 mm at this volume's far corner.
    np.testing.assert_allclose((affine_of(theirs) @ corners)[:3], (ours.affine @ corners)[:3], atol=0.05)
    assert read_volume(path).notes == ()
