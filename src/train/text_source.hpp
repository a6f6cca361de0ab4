#pragma once
// Text as training data: documents packed end to end, or read on as streams.

#include <vector>

#include "train/data_source.hpp"
#include "train/token_shard.hpp"

namespace xlstm::train {

struct TextOptions {
  std::int64_t seq_len = 512;  ///< tokens of a row
  std::int64_t batch = 1;      ///< rows of a step
  bool stream = false;         ///< rows go on where those of the last step ended
  bool shuffle = true;         ///< packed: rows of an epoch in random order
  bool random_offset = true;   ///< packed: another cut into rows in every epoch
  std::uint64_t seed = 0;
  bool validation = false;  ///< rows in order, each once
};

/// All documents end to end. Packed, they are cut into rows of seq_len tokens; within a row every
/// document starts from the empty state, and so does the rest of one that a cut went through.
/// As streams, row i of every step is the next seq_len tokens of the i-th part of the text; the
/// state is carried, and emptied where a document begins and where the part begins again.
class TextSource final : public DataSource {
 public:
  /// @throws Error(invalid_argument) if there are fewer tokens than a row takes
  TextSource(std::vector<TokenShard> shards, std::int64_t vocabulary, const TextOptions& options);

  void rows(std::int64_t step, std::int64_t begin, std::int64_t end, Examples& out) const override;
  std::int64_t vocabulary() const override { return vocabulary_; }
  std::int64_t count() const override { return options_.validation ? rows_ : 0; }
  std::int64_t streams() const override;
  double bytes_per_token() const override { return bytes_per_token_; }
  std::string identity() const override;

  std::int64_t tokens() const { return bases_.back(); }
  std::int64_t documents() const { return static_cast<std::int64_t>(ends_.size()); }

 private:
  void add_row(std::int64_t begin, std::int64_t end, std::int32_t stream_in,
               std::int32_t stream_out, Examples& out) const;

  std::vector<TokenShard> shards_;
  std::vector<std::int64_t> bases_ = {0};  ///< the first token of each shard, and the end
  std::vector<std::int64_t> ends_;         ///< of the documents
  std::int64_t vocabulary_;
  TextOptions options_;
  std::int64_t rows_ = 0;  ///< of an epoch
  double bytes_per_token_ = 0;
};

/// Element `i` of a random permutation of [0, n) that `key` names: no memory, any n.
std::int64_t permuted(std::int64_t i, std::int64_t n, std::uint64_t key);

}  // namespace xlstm::train
