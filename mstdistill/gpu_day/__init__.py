"""The first hour on a GPU, in stages that each leave a result; rehearsed on a CPU in tests. See docs/gpu-day.md."""
