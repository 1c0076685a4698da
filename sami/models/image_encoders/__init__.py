"""Image encoders of segmenters: [B, 3, H, W] -> [B, 256, gh, gw], and the methods of timm's backbones."""
