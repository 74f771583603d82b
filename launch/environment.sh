# shellcheck shell=bash
# What launch scripts set before Python starts; source it. A variable that is already set stays as it is.
# JAXSR_DETERMINISTIC=1 asks for the same bits in every run on the same GPUs, at some cost in speed.

export JAX_OPTIMIZATION_LEVEL=${JAX_OPTIMIZATION_LEVEL:-O1} # latency hiding, pipelined collectives, loop double buffering: NVIDIA's advice for JAX
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}
export NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-1}
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1} # on a CPU, a tenth of the time is page faults in what XLA allocates anew each time
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/jaxsr/compiled}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-1}
if [[ ${JAXSR_DETERMINISTIC:-0} == 1 ]]; then
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true"
fi
