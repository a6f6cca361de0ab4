#include "ops/embed.hpp"

#include "core/check.hpp"
#include "ops/check_args.hpp"

namespace xlstm::ops {

void check_embed(const EmbedArgs& a) {
  const auto tokens = static_cast<std::int64_t>(a.ids.size());
  check_at_least("embed", "the number of ids", tokens, 1);
  check_tensor("embed", "table", a.table, Types::weight, {a.table.dim(0), a.table.dim(1)});
  check_tensor("embed", "y", a.y, Types::f32, {tokens, a.table.dim(1)});
  for (std::int32_t id : a.ids)
    XLSTM_CHECK(id >= 0 && id < a.table.dim(0), invalid_argument,
                "embed: ids must be in [0, {}), found {}", a.table.dim(0), id);
}

std::size_t embed_workspace(const Context&, const EmbedArgs&) { return 0; }

void check_embed_backward(const EmbedBackwardArgs& a) {
  constexpr const char* kOp = "embed_backward";
  const auto tokens = static_cast<std::int64_t>(a.ids.size());
  const std::int64_t rows = a.d_table.dim(0), width = a.d_table.dim(1);
  check_at_least(kOp, "the number of ids", tokens, 1);
  check_tensor(kOp, "d_table", a.d_table, Types::f32, {rows, width});
  check_tensor(kOp, "d_y", a.d_y, Types::f32, {tokens, width});
  for (std::int32_t id : a.ids)
    XLSTM_CHECK(id >= 0 && id < rows, invalid_argument, "{}: ids must be in [0, {}), found {}", kOp,
                rows, id);
}

std::size_t embed_backward_workspace(const Context&, const EmbedBackwardArgs&) { return 0; }

}  // namespace xlstm::ops
