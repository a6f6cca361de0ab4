#pragma once
// What a training step reads, and where it comes from.

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace xlstm::train {

/// Sequences laid end to end: what one pass reads. Sequence s holds the tokens
/// [offsets[s], offsets[s + 1]).
struct Examples {
  std::vector<std::int32_t> offsets = {0};  ///< [sequences + 1], rising
  std::vector<std::int32_t> ids;            ///< [T]
  std::vector<std::int32_t> targets;        ///< [T], what follows each token; -1: not scored
  /// [sequences] the stream whose state a sequence starts from, and the one whose state its end
  /// becomes; -1: it starts from the empty state, and its end is dropped. A stream appears at most
  /// once in each.
  std::vector<std::int32_t> stream_in, stream_out;

  std::int64_t tokens() const noexcept { return static_cast<std::int64_t>(ids.size()); }
  std::int64_t sequences() const noexcept { return static_cast<std::int64_t>(stream_in.size()); }
  /// How many targets count.
  std::int64_t scored() const noexcept {
    return std::count_if(targets.begin(), targets.end(), [](std::int32_t t) { return t >= 0; });
  }
  /// Appends one sequence; `sequence_ids` and `sequence_targets` are of one length, at least 1.
  void add(std::span<const std::int32_t> sequence_ids,
           std::span<const std::int32_t> sequence_targets, std::int32_t in = -1,
           std::int32_t out = -1) {
    ids.insert(ids.end(), sequence_ids.begin(), sequence_ids.end());
    targets.insert(targets.end(), sequence_targets.begin(), sequence_targets.end());
    offsets.push_back(static_cast<std::int32_t>(ids.size()));
    stream_in.push_back(in);
    stream_out.push_back(out);
  }
};

/// Rows of examples. A source has no position: what a step reads is a function of the step's number
/// and of what the source was made with, so a run is resumed by its step alone, on any number of
/// processes.
class DataSource {
 public:
  DataSource() = default;
  DataSource(const DataSource&) = delete;
  DataSource& operator=(const DataSource&) = delete;
  virtual ~DataSource() = default;

  /// Appends rows [begin, end) of the batch of `step` (from 0), in order. A row is one or more
  /// sequences.
  virtual void rows(std::int64_t step, std::int64_t begin, std::int64_t end,
                    Examples& out) const = 0;
  /// Every id and target is below this.
  virtual std::int64_t vocabulary() const = 0;
  /// Rows that there are to measure with, all of step 0; 0: as many as one likes.
  virtual std::int64_t count() const { return 0; }
  /// Streams are numbered from 0 to this.
  virtual std::int64_t streams() const { return 0; }
  /// Bytes of text per scored token, for bits per byte; 0 where there is no text.
  virtual double bytes_per_token() const { return 0; }
  /// Accuracy of a guess, for scaled accuracy; below 0 where accuracy is not the measure.
  virtual double chance() const { return -1; }
  /// Changes when the same step would read something else; kept in checkpoints.
  virtual std::string identity() const = 0;
};

}  // namespace xlstm::train
