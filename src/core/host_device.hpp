#pragma once
// What stands before functions of headers that kernels call too.

#if defined(__CUDACC__)
#define XLSTM_HOST_DEVICE __host__ __device__
#else
#define XLSTM_HOST_DEVICE
#endif
