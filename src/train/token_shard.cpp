#include "train/token_shard.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/check.hpp"
#include "core/hash.hpp"
#include "text/utf8.hpp"

namespace xlstm::train {
namespace {

namespace fs = std::filesystem;

// The file: this header, the ends of the documents [documents] int64, the ids [tokens] uint16 or
// int32.
struct Header {
  std::array<char, 8> magic = {'x', 'l', 's', 't', 'm', 't', 'o', 'k'};
  std::uint32_t version = 1;
  std::uint32_t id_bytes = 2;
  std::int64_t tokens = 0;
  std::int64_t documents = 0;
  std::int64_t text_bytes = 0;
  std::uint64_t checksum = 0;  ///< of the header, this being 0, and all that follows
};
static_assert(sizeof(Header) == 48);

std::uint64_t checksum_of(Header header, std::span<const std::byte> body) {
  header.checksum = 0;
  return hash_bytes(body, hash_bytes(std::as_bytes(std::span(&header, 1)), 0));
}

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void check_utf8(std::string_view text, const std::string& where, std::size_t first_byte) {
  const std::size_t at = text::find_invalid_utf8(text);
  XLSTM_CHECK(at == std::string_view::npos, invalid_file, "{}: expected UTF-8, byte {} is not",
              where, first_byte + at);
}

// Byte at which the given part of the characters ends.
std::size_t character_border(std::string_view text, double part) {
  if (part <= 0) return 0;
  if (part >= 1) return text.size();
  std::size_t characters = 0;
  for (const char c : text) characters += (static_cast<unsigned char>(c) & 0xC0U) != 0x80U;
  auto left = static_cast<std::size_t>(part * static_cast<double>(characters));
  std::size_t at = 0;
  while (left-- > 0) at += text::code_point_size(text[at]);
  return at;
}

// Calls `take` with every document that the options ask for.
template <class Take>
void for_documents(std::string_view text, const std::string& name, bool jsonl,
                   const ShardOptions& options, Take&& take) {
  if (!jsonl) {
    check_utf8(text, name, 0);
    const std::size_t begin = character_border(text, options.begin);
    const std::size_t end = character_border(text, options.end);
    if (begin < end) take(text.substr(begin, end - begin));
    return;
  }
  std::vector<std::pair<std::size_t, std::string_view>> lines;  // number and text
  std::size_t number = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    ++number;
    if (line.find_first_not_of(" \t\r") != std::string_view::npos) lines.emplace_back(number, line);
    at = end + 1;
  }
  const auto count = static_cast<double>(lines.size());
  const auto begin = static_cast<std::size_t>(options.begin * count);
  const auto end = static_cast<std::size_t>(options.end * count);
  for (std::size_t i = begin; i < end; ++i) {
    const std::string where = fmt::format("{}:{}", name, lines[i].first);
    check_utf8(lines[i].second, where, 0);
    const auto line = nlohmann::json::parse(lines[i].second, nullptr, false);
    XLSTM_CHECK(!line.is_discarded() && line.is_object(), invalid_file,
                "{}: expected a JSON object on one line", where);
    const auto found = line.find(options.text_key);
    XLSTM_CHECK(found != line.end() && found->is_string(), invalid_file,
                "{}: expected text under \"{}\"", where, options.text_key);
    const auto& document = found->get_ref<const std::string&>();
    if (!document.empty()) take(std::string_view(document));
  }
}

void make_shard(const fs::path& path, std::string_view text, const std::string& name,
                const Tokenizer& tokenizer, bool jsonl, const ShardOptions& options) {
  Header header;
  header.id_bytes = tokenizer.size() <= 65536 ? 2 : 4;
  std::vector<std::int32_t> ids;
  std::vector<std::int64_t> ends;
  for_documents(text, name, jsonl, options, [&](std::string_view document) {
    if (options.bos >= 0) ids.push_back(options.bos);
    const std::vector<std::int32_t> more = tokenizer.encode(document);
    ids.insert(ids.end(), more.begin(), more.end());
    if (options.eos >= 0) ids.push_back(options.eos);
    ends.push_back(static_cast<std::int64_t>(ids.size()));
    header.text_bytes += static_cast<std::int64_t>(document.size());
  });
  header.tokens = static_cast<std::int64_t>(ids.size());
  header.documents = static_cast<std::int64_t>(ends.size());

  std::vector<std::byte> body(ends.size() * sizeof(std::int64_t) + ids.size() * header.id_bytes);
  auto append = [at = body.begin()](std::span<const std::byte> bytes) mutable {
    at = std::copy(bytes.begin(), bytes.end(), at);
  };
  append(std::as_bytes(std::span(ends)));
  if (header.id_bytes == 4) {
    append(std::as_bytes(std::span(ids)));
  } else {
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const auto id = static_cast<std::uint16_t>(ids[i]);
      append(std::as_bytes(std::span(&id, 1)));
    }
  }
  header.checksum = checksum_of(header, body);
  formats::AtomicFile file(path);
  file.write(std::as_bytes(std::span(&header, 1)));
  file.write(body);
  file.commit();
}

// Empty if it is not a whole shard of this version.
bool read_header(std::span<const std::byte> bytes, Header& header) {
  if (bytes.size() < sizeof(Header)) return false;
  std::memcpy(&header, bytes.data(), sizeof(Header));
  const std::size_t body = bytes.size() - sizeof(Header);
  const Header expected;
  return header.magic == expected.magic && header.version == expected.version &&
         (header.id_bytes == 2 || header.id_bytes == 4) && header.tokens >= 0 &&
         header.documents >= 0 && static_cast<std::uint64_t>(header.tokens) <= body &&
         static_cast<std::uint64_t>(header.documents) <= body &&
         static_cast<std::size_t>(header.documents) * 8 +
                 static_cast<std::size_t>(header.tokens) * header.id_bytes ==
             body &&
         checksum_of(header, bytes.subspan(sizeof(Header))) == header.checksum;
}

}  // namespace

TokenShard TokenShard::open(const fs::path& source, const Tokenizer& tokenizer,
                            std::uint64_t tokenizer_hash, const ShardOptions& options,
                            const fs::path& cache) {
  const std::string name = source.string();
  const formats::MappedFile file(source);
  XLSTM_CHECK(!file.bytes().empty(), invalid_file, "{}: expected text, the file is empty", name);
  const bool jsonl = options.format == "jsonl" ||
                     (options.format == "auto" &&
                      (source.extension() == ".jsonl" || source.extension() == ".ndjson"));
  const std::string how = fmt::format("{} {} {} {} {} {}", jsonl, options.text_key, options.begin,
                                      options.end, options.bos, options.eos);
  const std::uint64_t key =
      hash_bytes(std::as_bytes(std::span(how)), hash_bytes(file.bytes(), tokenizer_hash));

  std::error_code error;
  fs::create_directories(cache, error);
  XLSTM_CHECK(!error, io, "data.cache: {}: could not create the directory: {}", cache.string(),
              error.message());
  const fs::path path = cache / fmt::format("{:016x}.tokens", key);
  Header header;
  TokenShard shard;
  bool whole = false;
  if (fs::exists(path, error)) {
    shard.file_ = formats::MappedFile(path);
    whole = read_header(shard.file_.bytes(), header);
  }
  if (!whole) {
    make_shard(path, text_of(file.bytes()), name, tokenizer, jsonl, options);
    shard.file_ = formats::MappedFile(path);
    XLSTM_CHECK(read_header(shard.file_.bytes(), header), io, "{}: could not be read back",
                path.string());
  }
  const std::byte* body = shard.file_.bytes().data() + sizeof(Header);
  shard.ends_ = {reinterpret_cast<const std::int64_t*>(body),
                 static_cast<std::size_t>(header.documents)};
  body += shard.ends_.size_bytes();
  shard.ids16_ = reinterpret_cast<const std::uint16_t*>(body);
  shard.ids32_ = reinterpret_cast<const std::int32_t*>(body);
  shard.wide_ = header.id_bytes == 4;
  shard.tokens_ = header.tokens;
  shard.text_bytes_ = header.text_bytes;
  shard.hash_ = key;
  return shard;
}

}  // namespace xlstm::train
