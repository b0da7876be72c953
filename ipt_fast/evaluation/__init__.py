"""Scores of restored images: PSNR and SSIM, test sets, the tables of the paper, held-out photos."""
