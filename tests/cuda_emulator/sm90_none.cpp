// The kernels of src/ops/cuda/sm90/, which no emulator runs: Level::base never calls them.
