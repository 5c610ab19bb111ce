"""XLA flags for fast compilation of small programs that run only a few times."""

COMPILATION = " ".join(
    (
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE",
        "--xla_cpu_use_fusion_emitters=false",
    )
)
