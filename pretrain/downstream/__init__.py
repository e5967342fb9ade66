"""What an encoder is worth without a robot: public benchmarks, their synthetic twins, and the spatial probe."""
