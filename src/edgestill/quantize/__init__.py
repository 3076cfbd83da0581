"""8 bits: post-training, and quantization-aware distillation, for the runtimes that take one form of both."""
