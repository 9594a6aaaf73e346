"""What architecture families share: forms of decoders and towers, pictures in pieces."""
