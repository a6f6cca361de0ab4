#include "text/bpe.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/check.hpp"
#include "text/byte_level.hpp"
#include "text/utf8.hpp"

namespace xlstm::text {

namespace {

constexpr std::uint32_t kIdLimit = 1U << 31U;
constexpr std::size_t kLongestCachedWord = 128;
constexpr std::size_t kMostCachedWords = std::size_t{1} << 16U;

std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64U);
}

constexpr std::uint64_t kHashFactor = 0x9E3779B97F4A7C15U;

std::uint64_t hash_word(std::string_view word) {
  std::uint64_t hash = word.size() + 1;
  std::uint64_t part = 0;
  while (word.size() >= sizeof part) {
    std::memcpy(&part, word.data(), sizeof part);
    hash = mix(hash ^ part, kHashFactor);
    word.remove_prefix(sizeof part);
  }
  part = 0;
  std::memcpy(&part, word.data(), word.size());
  return mix(hash ^ part, 0xD6E8FEB86659FD93U) ^ hash;
}

}  // namespace

// --- The model ---

void Bpe::MergeTable::reserve(std::size_t count) {
  slots_.assign(std::bit_ceil(2 * count + 2), {});
  mask_ = slots_.size() - 1;
}

Bpe::MergeTable::Slot* Bpe::MergeTable::place(std::uint64_t pair) noexcept {
  std::size_t i = mix(pair, kHashFactor) & mask_;
  while (slots_[i].pair != pair && slots_[i].pair != kEmpty) i = (i + 1) & mask_;
  return &slots_[i];
}

void Bpe::MergeTable::set(std::int32_t left, std::int32_t right, Merge merge) {
  const std::uint64_t pair =
      static_cast<std::uint64_t>(left) << 32U | static_cast<std::uint32_t>(right);
  *place(pair) = {pair, merge};
}

const Bpe::Merge* Bpe::MergeTable::find(std::int32_t left, std::int32_t right) const noexcept {
  const std::uint64_t pair =
      static_cast<std::uint64_t>(left) << 32U | static_cast<std::uint32_t>(right);
  std::size_t i = mix(pair, kHashFactor) & mask_;
  while (slots_[i].pair != kEmpty) {
    if (slots_[i].pair == pair) return &slots_[i].merge;
    i = (i + 1) & mask_;
  }
  return nullptr;
}

Bpe::Bpe(const JsonNode& model) {
  if (const auto dropout = model.find("dropout")) {
    if (!dropout->value().is_number()) dropout->fail_expected("a number");
    if (dropout->value().get<double>() != 0)
      dropout->fail_unsupported("dropout, which makes the encoding random,");
  }
  if (const auto prefix = model.find("continuing_subword_prefix")) prefix_ = prefix->string();
  if (const auto suffix = model.find("end_of_word_suffix")) suffix_ = suffix->string();
  fuse_unknown_ = model.boolean_or("fuse_unk", false);
  byte_fallback_ = model.boolean_or("byte_fallback", false);
  ignore_merges_ = model.boolean_or("ignore_merges", false);
  read_vocabulary(model.at("vocab"));
  read_merges(model.at("merges"));
  if (const auto unknown = model.find("unk_token")) {
    unknown_token_ = unknown->string();
    unknown_ = find(*unknown_token_);
  }
  prepare_bytes();
}

void Bpe::read_vocabulary(const JsonNode& vocabulary) {
  if (!vocabulary.is_object()) vocabulary.fail_expected("an object");
  const auto& members = vocabulary.value().get_ref<const nlohmann::json::object_t&>();
  std::vector<std::pair<std::int32_t, const std::string*>> entries;
  entries.reserve(members.size());
  for (const auto& [token, id] : members) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= kIdLimit - 1)
      JsonNode(id, fmt::format("{}[\"{}\"]", vocabulary.path(), token)).integer(kIdLimit - 1);
    entries.emplace_back(id.get<std::int32_t>(), &token);
  }
  std::sort(entries.begin(), entries.end());
  tokens_.reserve(entries.size());
  ids_.reserve(entries.size());
  vocabulary_.reserve(entries.size());
  for (const auto& [id, token] : entries) {
    if (!ids_.empty() && ids_.back() == id)
      vocabulary.fail_expected(fmt::format("one token for id {} (not both \"{}\" and \"{}\")", id,
                                           tokens_.back(), *token));
    ids_.push_back(id);
    tokens_.push_back(*token);
    vocabulary_.emplace(tokens_.back(), id);
  }
}

void Bpe::read_merges(const JsonNode& merges) {
  if (!merges.value().is_array()) merges.fail_expected("an array");
  const nlohmann::json& list = merges.value();
  merge_count_ = list.size();
  merges_.reserve(list.size());
  std::uint32_t rank = 0;
  std::string merged;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const auto entry = [&] { return JsonNode(list[i], fmt::format("{}[{}]", merges.path(), i)); };
    std::string_view left;
    std::string_view right;
    if (list[i].is_string()) {
      const std::string_view line = list[i].get_ref<const std::string&>();
      if (line.starts_with("#version")) continue;
      const std::size_t space = line.find(' ');
      if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos)
        entry().fail_expected("two tokens with one space between them");
      left = line.substr(0, space);
      right = line.substr(space + 1);
    } else if (list[i].is_array() && list[i].size() == 2 && list[i][0].is_string() &&
               list[i][1].is_string()) {
      left = list[i][0].get_ref<const std::string&>();
      right = list[i][1].get_ref<const std::string&>();
    } else {
      entry().fail_expected("a pair of tokens");
    }
    if (right.size() < prefix_.size())
      entry().fail_expected("a right token that begins with continuing_subword_prefix");
    const auto known = [&](std::string_view token) {
      const auto id = find(token);
      if (!id) entry().fail_expected(fmt::format("\"{}\" in the vocabulary", token));
      return *id;
    };
    merged.assign(left).append(right.substr(prefix_.size()));
    const std::int32_t left_id = known(left);
    const std::int32_t right_id = known(right);
    merges_.set(left_id, right_id, {rank++, known(merged)});
  }
}

void Bpe::prepare_bytes() {
  takes_bytes_ = prefix_.empty() && suffix_.empty();
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const auto id = find(byte_characters()[byte]);
    takes_bytes_ = takes_bytes_ && id.has_value();
    byte_ids_[byte] = id.value_or(-1);
    fallback_ids_[byte] = find(fmt::format("<0x{:02X}>", byte)).value_or(-1);
  }
  if (!takes_bytes_ || !ignore_merges_) return;
  for (std::size_t i = 0; i < tokens_.size(); ++i)
    if (auto bytes = bytes_of_byte_level(tokens_[i])) byte_vocabulary_.emplace(*bytes, ids_[i]);
}

std::optional<std::int32_t> Bpe::find(std::string_view token) const {
  const auto place = vocabulary_.find(token);
  if (place == vocabulary_.end()) return std::nullopt;
  return place->second;
}

const std::string* Bpe::token(std::int32_t id) const noexcept {
  if (id < 0) return nullptr;
  const auto index = static_cast<std::size_t>(id);
  if (index < ids_.size() && ids_[index] == id) return &tokens_[index];  // no holes up to here
  const auto place = std::lower_bound(ids_.begin(), ids_.end(), id);
  if (place == ids_.end() || *place != id) return nullptr;
  return &tokens_[static_cast<std::size_t>(place - ids_.begin())];
}

// --- Words ---

void BpeEncoder::encode(std::string_view word, std::vector<std::int32_t>& ids) {
  if (word.empty()) return;
  if (as_bytes_ && word.size() == 1) {
    ids.push_back(model_.byte_ids_[static_cast<std::uint8_t>(word[0])]);
    return;
  }
  CacheSlot* place = nullptr;
  std::uint64_t hash = 0;
  if (word.size() <= kLongestCachedWord) {
    hash = hash_word(word);
    place = cache_place(word, hash);
    if (place->key_size != 0) {
      const auto first = cached_ids_.begin() + place->ids_begin;
      ids.insert(ids.end(), first, first + place->ids_count);
      return;
    }
  }

  const std::size_t begin = ids.size();
  std::optional<std::int32_t> whole;
  if (model_.ignore_merges_) {
    if (as_bytes_) {
      const auto entry = model_.byte_vocabulary_.find(std::string(word));
      if (entry != model_.byte_vocabulary_.end()) whole = entry->second;
    } else {
      whole = model_.find(word);
    }
  }
  if (whole) {
    ids.push_back(*whole);
  } else {
    symbols_.clear();
    if (as_bytes_) {
      split_bytes(word);
    } else {
      split_characters(word);
    }
    merge();
    for (const Symbol& symbol : symbols_)
      if (!symbol.merged_away) ids.push_back(symbol.id);
  }

  if (place == nullptr || cached_ >= kMostCachedWords) return;
  *place = {hash, static_cast<std::uint32_t>(cached_words_.size()),
            static_cast<std::uint32_t>(word.size()), static_cast<std::uint32_t>(cached_ids_.size()),
            static_cast<std::uint32_t>(ids.size() - begin)};
  cached_words_ += word;
  cached_ids_.insert(cached_ids_.end(), ids.begin() + static_cast<std::ptrdiff_t>(begin),
                     ids.end());
  ++cached_;
}

void BpeEncoder::add_symbol(std::int32_t id) {
  const auto position = static_cast<std::int32_t>(symbols_.size());
  if (position > 0) symbols_.back().next = position;
  symbols_.push_back({id, position - 1, -1, false});
}

void BpeEncoder::split_bytes(std::string_view word) {
  for (const char byte : word) add_symbol(model_.byte_ids_[static_cast<std::uint8_t>(byte)]);
}

void BpeEncoder::split_characters(std::string_view word) {
  bool unknown = false;  // one is waiting: the next may fuse with it
  for (std::size_t i = 0; i < word.size();) {
    const std::size_t size = code_point_size(word[i]);
    std::string_view symbol = word.substr(i, size);
    const bool first = i == 0;
    i += size;
    const bool last = i == word.size();
    if ((!first && !model_.prefix_.empty()) || (last && !model_.suffix_.empty())) {
      scratch_.clear();
      if (!first) scratch_ += model_.prefix_;
      scratch_ += symbol;
      if (last) scratch_ += model_.suffix_;
      symbol = scratch_;
    }
    if (const auto id = model_.find(symbol)) {
      if (unknown) add_symbol(*model_.unknown_);
      unknown = false;
      add_symbol(*id);
      continue;
    }
    const auto fallback = [&](char byte) {
      return model_.fallback_ids_[static_cast<std::uint8_t>(byte)];
    };
    if (model_.byte_fallback_ &&
        std::all_of(symbol.begin(), symbol.end(), [&](char byte) { return fallback(byte) >= 0; })) {
      // A waiting unknown token stays behind these bytes: so does the reference.
      for (const char byte : symbol) add_symbol(fallback(byte));
      continue;
    }
    if (!model_.unknown_token_) continue;  // without an unknown token the character is lost
    XLSTM_CHECK(model_.unknown_, invalid_file,
                "tokenizer: unk_token \"{}\" is needed for \"{}\", but not in the vocabulary",
                *model_.unknown_token_, symbol);
    if (unknown && !model_.fuse_unknown_) add_symbol(*model_.unknown_);
    unknown = true;
  }
  if (unknown) add_symbol(*model_.unknown_);
}

void BpeEncoder::propose(std::int32_t left, std::int32_t right) {
  const Bpe::Merge* merge = model_.merges_.find(symbols_[static_cast<std::size_t>(left)].id,
                                                symbols_[static_cast<std::size_t>(right)].id);
  if (merge == nullptr) return;
  heap_.push_back(
      {static_cast<std::uint64_t>(merge->rank) << 32U | static_cast<std::uint32_t>(left),
       merge->id});
}

void BpeEncoder::merge() {
  const auto later = [](const Candidate& a, const Candidate& b) { return a.order > b.order; };
  heap_.clear();
  for (std::size_t i = 0; i + 1 < symbols_.size(); ++i)
    propose(static_cast<std::int32_t>(i), static_cast<std::int32_t>(i + 1));
  std::make_heap(heap_.begin(), heap_.end(), later);
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), later);
    const Candidate candidate = heap_.back();
    heap_.pop_back();
    const auto position = static_cast<std::int32_t>(candidate.order & 0xFFFFFFFFU);
    Symbol& left = symbols_[static_cast<std::size_t>(position)];
    if (left.merged_away || left.next < 0) continue;
    Symbol& right = symbols_[static_cast<std::size_t>(left.next)];
    const Bpe::Merge* merge = model_.merges_.find(left.id, right.id);
    if (merge == nullptr || merge->id != candidate.id) continue;  // stale
    left.id = candidate.id;
    left.next = right.next;
    right.merged_away = true;
    const auto offer = [&](std::int32_t a, std::int32_t b) {
      const std::size_t count = heap_.size();
      propose(a, b);
      if (heap_.size() > count) std::push_heap(heap_.begin(), heap_.end(), later);
    };
    if (left.next >= 0) symbols_[static_cast<std::size_t>(left.next)].previous = position;
    if (left.previous >= 0) offer(left.previous, position);
    if (left.next >= 0) offer(position, left.next);
  }
}

BpeEncoder::CacheSlot* BpeEncoder::cache_place(std::string_view word, std::uint64_t hash) {
  if (2 * (cached_ + 1) > cache_.size()) grow_cache();
  const std::size_t mask = cache_.size() - 1;
  for (std::size_t i = hash & mask;; i = (i + 1) & mask) {
    CacheSlot& slot = cache_[i];
    if (slot.key_size == 0 ||
        (slot.hash == hash && slot.key_size == word.size() &&
         std::memcmp(cached_words_.data() + slot.key_begin, word.data(), word.size()) == 0))
      return &slot;
  }
}

void BpeEncoder::grow_cache() {
  std::vector<CacheSlot> old(std::max<std::size_t>(64, 2 * cache_.size()));
  old.swap(cache_);
  const std::size_t mask = cache_.size() - 1;
  for (const CacheSlot& slot : old) {
    if (slot.key_size == 0) continue;
    std::size_t i = slot.hash & mask;
    while (cache_[i].key_size != 0) i = (i + 1) & mask;
    cache_[i] = slot;
  }
}

}  // namespace xlstm::text
