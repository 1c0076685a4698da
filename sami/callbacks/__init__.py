"""What happens beside a training step: files, numbers, pictures, guards."""
