#pragma once
// Byte-pair encoding: a word becomes symbols, and the pair of lowest rank is merged until none is
// left.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/json_node.hpp"

namespace xlstm::text {

/// The member "model" of a tokenizer.json of type BPE.
class Bpe {
 public:
  /// @throws Error(invalid_file), Error(unsupported)
  explicit Bpe(const JsonNode& model);

  std::size_t vocabulary_size() const noexcept { return tokens_.size(); }
  std::size_t merge_count() const noexcept { return merge_count_; }
  std::int32_t id_limit() const noexcept { return ids_.empty() ? 0 : ids_.back() + 1; }
  std::optional<std::int32_t> find(std::string_view token) const;
  const std::string* token(std::int32_t id) const noexcept;
  /// True when a byte-level word may be given as its bytes: all 256 are tokens of their own.
  bool takes_bytes() const noexcept { return takes_bytes_; }

 private:
  friend class BpeEncoder;

  struct Merge {
    std::uint32_t rank = 0;
    std::int32_t id = 0;
  };
  /// Pair of ids -> merge: open addressing, as this look-up is most of the work of a new word.
  class MergeTable {
   public:
    void reserve(std::size_t count);
    /// Inserts, or overwrites what the pair had.
    void set(std::int32_t left, std::int32_t right, Merge merge);
    const Merge* find(std::int32_t left, std::int32_t right) const noexcept;

   private:
    struct Slot {
      std::uint64_t pair = kEmpty;
      Merge merge;
    };
    static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};  // ids are not negative
    Slot* place(std::uint64_t pair) noexcept;

    std::vector<Slot> slots_;
    std::size_t mask_ = 0;
  };

  void read_vocabulary(const JsonNode& vocabulary);
  void read_merges(const JsonNode& merges);
  void prepare_bytes();

  std::vector<std::string> tokens_;  // by ascending id
  std::vector<std::int32_t> ids_;    // of tokens_
  std::unordered_map<std::string_view, std::int32_t> vocabulary_;
  MergeTable merges_;
  std::size_t merge_count_ = 0;
  std::optional<std::string> unknown_token_;
  std::optional<std::int32_t> unknown_;  // its id; a file may name one that it does not have
  std::string prefix_;                   // of every symbol of a word but the first
  std::string suffix_;                   // of the last symbol of a word
  bool fuse_unknown_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;

  bool takes_bytes_ = false;
  std::int32_t byte_ids_[256] = {};
  std::int32_t fallback_ids_[256] = {};  // of <0x00> ... <0xFF>, -1: not a token
  std::unordered_map<std::string, std::int32_t> byte_vocabulary_;  // with ignore_merges
};

/// Encodes words one after the other, with a cache of what it has seen: one per call of encode().
class BpeEncoder {
 public:
  /// `as_bytes`: words are the bytes that a byte-level word stands for (needs takes_bytes()).
  BpeEncoder(const Bpe& model, bool as_bytes) : model_(model), as_bytes_(as_bytes) {}

  /// Appends the ids of `word` to `ids`.
  void encode(std::string_view word, std::vector<std::int32_t>& ids);

 private:
  struct Symbol {
    std::int32_t id;
    std::int32_t previous;  // -1: none
    std::int32_t next;      // -1: none
    bool merged_away;
  };
  /// A pair that may be merged; stale once another merge has taken one of its symbols.
  struct Candidate {
    std::uint64_t order;  // rank << 32 | position of the left symbol
    std::int32_t id;
  };
  struct CacheSlot {
    std::uint64_t hash = 0;
    std::uint32_t key_begin = 0;
    std::uint32_t key_size = 0;  // 0: free
    std::uint32_t ids_begin = 0;
    std::uint32_t ids_count = 0;
  };

  void split_bytes(std::string_view word);
  void split_characters(std::string_view word);
  void add_symbol(std::int32_t id);
  void merge();
  void propose(std::int32_t left, std::int32_t right);
  CacheSlot* cache_place(std::string_view word, std::uint64_t hash);
  void grow_cache();

  const Bpe& model_;
  bool as_bytes_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
  std::string scratch_;
  std::vector<CacheSlot> cache_;
  std::size_t cached_ = 0;
  std::string cached_words_;
  std::vector<std::int32_t> cached_ids_;
};

}  // namespace xlstm::text
