"""The Triton forms, one file an operation: kernels, launch and operator. Importing a file here needs triton."""
