"""The codec of the embedded world: linear and orthonormal on patches of 4 frames x 8 x 8 px.

Because decoding is linear, a decoded clean-latent estimate *is* the mean over the films the model still holds
possible, and the share of each candidate can be measured in it. Interface and 4k + 1 frame rule are those of Wan's VAE
(the first frame is a latent frame of its own), so the stock pipelines run on it.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin

from . import world

__all__ = ["PatchCodec"]


class _Point:
    """A distribution without spread: what `encode` returns where a VAE returns a Gaussian."""

    def __init__(self, latents: torch.Tensor):
        self._latents = latents

    def mode(self) -> torch.Tensor:
        return self._latents

    def sample(self, generator=None) -> torch.Tensor:
        return self._latents


class PatchCodec(ModelMixin, ConfigMixin):
    """Karhunen-Loeve transform of patches: z = W (patch - mean), patch = W' z + mean, W (z_dim, 768) orthonormal.

    Pixels are in [-1, 1], videos (B, 3, T, H, W) with T = 4k + 1 and H, W multiples of 8; latents (B, z_dim, k + 1,
    H / 8, W / 8). Pipelines divide latents by `latents_std` themselves, as they do for Wan's VAE.
    """

    @register_to_config
    def __init__(self, z_dim: int = 16, latents_mean: list[float] | None = None, latents_std: list[float] | None = None,
                 scale_factor_temporal: int = 4, scale_factor_spatial: int = 8):  # fmt: skip
        super().__init__()
        size = scale_factor_temporal * scale_factor_spatial**2 * 3
        if latents_mean is None or latents_std is None:
            self.register_to_config(latents_mean=[0.0] * z_dim, latents_std=[1.0] * z_dim)
        self.basis = torch.nn.Parameter(torch.eye(z_dim, size), requires_grad=False)
        self.mean = torch.nn.Parameter(torch.zeros(size), requires_grad=False)

    @classmethod
    def fit(cls, films: np.ndarray, z_dim: int = 16) -> PatchCodec:
        """Fit to films of tile numbers (n, 17, 10, 10): the leading eigenvectors of the patches' covariance."""
        patches, counts = np.unique(_patches(films), axis=0, return_counts=True)
        values = torch.from_numpy(world.TILES[patches].reshape(len(patches), -1) * 2 - 1).double()
        weights = torch.from_numpy(counts / counts.sum()).double()
        mean = weights @ values
        centred = (values - mean) * weights.sqrt()[:, None]
        _, singular, basis = torch.linalg.svd(centred, full_matrices=False)
        codec = cls(z_dim, latents_mean=[0.0] * z_dim, latents_std=[float(s) for s in singular[:z_dim]])
        codec.basis.data, codec.mean.data = basis[:z_dim].float().contiguous(), mean.float()
        return codec.eval()

    def _group(self, video: torch.Tensor) -> torch.Tensor:
        """(B, 3, T, H, W) -> (B, F, h, w, 768), values ordered time, row, column, colour; first frame repeated."""
        t, s = self.config.scale_factor_temporal, self.config.scale_factor_spatial
        frames, height, width = video.shape[2:]
        if frames % t != 1 or height % s or width % s:
            raise ValueError(f"a video has {t}k + 1 frames and sides that are multiples of {s} px, got {frames} frames "
                             f"of {height} x {width} px")  # fmt: skip
        video = torch.cat([video[:, :, :1].expand(-1, -1, t - 1, -1, -1), video], 2)
        video = video.unflatten(4, (-1, s)).unflatten(3, (-1, s)).unflatten(2, (-1, t))  # B C F t h s w s
        return video.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4)

    def encode(self, x: torch.Tensor, return_dict: bool = True):
        latents = ((self._group(x) - self.mean) @ self.basis.T).permute(0, 4, 1, 2, 3).contiguous()
        return AutoencoderKLOutput(latent_dist=_Point(latents)) if return_dict else (_Point(latents),)

    def decode(self, z: torch.Tensor, return_dict: bool = True):
        t, s = self.config.scale_factor_temporal, self.config.scale_factor_spatial
        video = z.permute(0, 2, 3, 4, 1) @ self.basis + self.mean
        video = video.unflatten(4, (t, s, s, 3)).permute(0, 7, 1, 4, 2, 5, 3, 6)  # B C F t h s w s
        video = video.flatten(6, 7).flatten(4, 5).flatten(2, 3)[:, :, t - 1 :].contiguous()
        return DecoderOutput(sample=video) if return_dict else (video,)

    def encode_ids(self, films: torch.Tensor) -> torch.Tensor:
        """Normalised latents (n, z_dim, 5, 10, 10) of films of tile numbers (n, 17, 10, 10), by table look-up.

        Equal to encoding the drawn films, without drawing them: the transform is a sum over the frames of a patch.
        """
        tiles = torch.from_numpy(world.TILES).to(self.basis).flatten(1) * 2 - 1
        part = torch.einsum("pd,ztd->tpz", tiles, self.basis.unflatten(1, (self.config.scale_factor_temporal, -1)))
        films = torch.cat([films[:, :1].expand(-1, 3, -1, -1), films], 1).long().unflatten(1, (-1, 4))
        latents = sum(part[t][films[:, :, t]] for t in range(4)) - self.mean @ self.basis.T
        return (latents / torch.tensor(self.config.latents_std).to(latents)).permute(0, 4, 1, 2, 3).contiguous()


def _patches(films: np.ndarray) -> np.ndarray:
    """Films (n, 17, 10, 10) -> tile numbers of all patches (m, 4)."""
    films = np.concatenate([np.repeat(films[:, :1], 3, 1), films], 1)
    return films.reshape(len(films), -1, 4, films.shape[2] * films.shape[3]).swapaxes(2, 3).reshape(-1, 4)
