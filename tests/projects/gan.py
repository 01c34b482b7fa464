"""A GAN that paints bright squares, trained by manual optimization."""

import time

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.utils import make_grid


class Squares(Dataset):
    """Images of 16x16 pixels from -1 to 1, each with a bright square."""

    def __init__(self, n: int = 650, seed: int = 0):
        corners = torch.randint(0, 10, (n, 2), generator=torch.Generator().manual_seed(seed))
        self.images = torch.full((n, 1, 16, 16), -1.0)
        for image, (row, column) in zip(self.images, corners, strict=True):
            image[0, row : row + 6, column : column + 6] = 1

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]


class SquareData(L.LightningDataModule):
    def __init__(self, batch_size: int = 32, num_workers: int = 0):
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers

    def setup(self, stage=None):
        self.train, self.unseen = Squares(650, seed=0), Squares(101, seed=1)

    def train_dataloader(self):
        return DataLoader(
            self.train, batch_size=self.batch_size, shuffle=True, num_workers=self.num_workers, drop_last=True
        )

    def predict_dataloader(self):
        return DataLoader(self.unseen, batch_size=self.batch_size, num_workers=self.num_workers)


class GAN(L.LightningModule):
    def __init__(self, latent: int = 16, dropout: float = 0.1, lr: float = 1e-3, n_critic: int = 2, slow: float = 0.0):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.slow = slow
        self.generator = nn.Sequential(
            nn.Linear(latent, 256),
            nn.ReLU(),
            nn.Unflatten(1, (16, 4, 4)),
            nn.ConvTranspose2d(16, 16, 4, 2, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, 2, 1),
            nn.Tanh(),
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Dropout(dropout),
            nn.Conv2d(16, 16, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(256, 1),
        )
        self.register_buffer("fixed_noise", torch.randn(8, latent))
        self.example_input_array = torch.zeros(2, latent)

    def forward(self, z):
        return self.generator(z)

    def adversarial_loss(self, images, real):
        score = self.discriminator(images)
        return F.binary_cross_entropy_with_logits(score, torch.full_like(score, real))

    def training_step(self, images, batch_idx):
        time.sleep(self.slow)
        opt_g, opt_d = self.optimizers()
        z = torch.randn(len(images), self.hparams.latent).type_as(images)

        self.toggle_optimizer(opt_d)
        fakes = self(z).detach()
        d_loss = (self.adversarial_loss(images, 1.0) + self.adversarial_loss(fakes, 0.0)) / 2
        opt_d.zero_grad()
        self.manual_backward(d_loss)
        opt_d.step()
        self.untoggle_optimizer(opt_d)
        self.log("d_loss", d_loss)

        if batch_idx == 0:
            self.logger.experiment.add_image("training/fakes", make_grid(fakes[:8], normalize=True), self.current_epoch)
        if batch_idx % self.hparams.n_critic == 0:
            self.toggle_optimizer(opt_g)
            g_loss = self.adversarial_loss(self(z), 1.0)
            opt_g.zero_grad()
            self.manual_backward(g_loss)
            opt_g.step()
            self.untoggle_optimizer(opt_g)
            self.log("g_loss", g_loss)

    def on_train_epoch_end(self):
        grid = make_grid(self(self.fixed_noise), normalize=True)
        self.logger.experiment.add_image("epoch/fakes", grid, self.current_epoch)

    def predict_step(self, images, batch_idx):
        return {"score": self.discriminator(images).sigmoid(), "images": list(images)}

    def configure_optimizers(self):
        parts = self.generator, self.discriminator
        return [torch.optim.Adam(part.parameters(), lr=self.hparams.lr, betas=(0.5, 0.999)) for part in parts]
