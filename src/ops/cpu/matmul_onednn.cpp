#include <dnnl.h>
#include <omp.h>

#include "core/check.hpp"
#include "ops/cpu/matmul.hpp"

namespace xlstm::ops::cpu {

void sgemm(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, float alpha,
           const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c,
           std::int64_t ldc) {
  const int threads = omp_get_max_threads();
  if (threads > 1) omp_set_num_threads(1);
  const dnnl_status_t status =
      dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  if (threads > 1) omp_set_num_threads(threads);
  XLSTM_ASSERT(status == dnnl_success);
}

}  // namespace xlstm::ops::cpu
