// State files (docs/formats.md, "State file").

#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "core/check.hpp"
#include "core/hash.hpp"
#include "formats/mapped_file.hpp"
#include "model/state_impl.hpp"

namespace xlstm {
namespace {

static_assert(std::endian::native == std::endian::little, "files are little-endian");

constexpr std::array<char, 8> kMagic = {'x', 'l', 's', 't', 'm', 's', 't', 'a'};
constexpr std::uint32_t kVersion = 3;

// The first 56 bytes of the file.
struct Header {
  std::array<char, 8> magic = kMagic;
  std::uint32_t version = kVersion;
  std::uint32_t header_bytes = 56;
  std::uint64_t model_hash = 0;
  std::int64_t tokens = 0;
  std::int64_t values = 0;  // of all states
  std::int64_t logits = 0;  // vocabulary size, or 0 when there are none
  std::uint64_t checksum = 0;
};
static_assert(sizeof(Header) == 56);

// Calls body(data, bytes) for every part of the state, in the order of the file.
template <class Body>
void for_each_part(const State::Impl& s, Body&& body) {
  for (const model::StateLayout::Part& part : s.layout.parts())
    body(s.record.data() + part.offset, part.bytes());
}

// hash_bytes() of the header before the checksum, and with that result as the seed of the next
// part, and so on. next(data, size) gives the bytes of the part that belongs at `data`.
template <class Next>
std::uint64_t checksum(const Header& header, const State::Impl& s, Next&& next) {
  const auto head = std::as_bytes(std::span(&header, 1));
  std::uint64_t h = hash_bytes(head.first(offsetof(Header, checksum)), 0);
  for_each_part(s, [&](std::byte* data, std::size_t size) { h = hash_bytes(next(data, size), h); });
  if (header.logits == 0) return h;
  const auto* logits = reinterpret_cast<const std::byte*>(s.logits.data());
  return hash_bytes(next(logits, s.logits.size() * sizeof(float)), h);
}

}  // namespace

void State::save(const std::filesystem::path& file) const {
  impl_->on({});
  const Impl& s = *impl_;
  Header header;
  header.model_hash = s.model_hash;
  header.tokens = s.tokens;
  header.values = s.layout.count();
  header.logits = s.has_logits ? static_cast<std::int64_t>(s.logits.size()) : 0;

  const auto in_memory = [](const std::byte* data, std::size_t size) {
    return std::span(data, size);
  };
  header.checksum = checksum(header, s, in_memory);

  formats::AtomicFile out(file);
  out.write(std::as_bytes(std::span(&header, 1)));
  for_each_part(s, [&](const std::byte* data, std::size_t size) { out.write({data, size}); });
  if (s.has_logits) out.write(std::as_bytes(std::span(s.logits)));
  out.commit();
}

void State::load(const std::filesystem::path& file) {
  Impl& s = *impl_;
  const formats::MappedFile mapped(file);
  const std::span<const std::byte> bytes = mapped.bytes();
  const std::string name = file.string();
  XLSTM_CHECK(bytes.size() >= sizeof(Header), invalid_file,
              "{}: expected a state file of at least {} bytes, found {}", name, sizeof(Header),
              bytes.size());
  Header header;
  std::memcpy(&header, bytes.data(), sizeof(Header));
  XLSTM_CHECK(header.magic == kMagic, invalid_file,
              "{}: expected a state file (it begins with 'xlstmsta'), found something else", name);
  XLSTM_CHECK(header.version == kVersion && header.header_bytes == sizeof(Header), invalid_file,
              "{}: expected a state file of version {}, found version {}", name, kVersion,
              header.version);
  XLSTM_CHECK(header.model_hash == s.model_hash, invalid_file,
              "{}: expected a state of model {:016x}, found one of model {:016x}", name,
              s.model_hash, header.model_hash);
  XLSTM_CHECK(header.values == s.layout.count(), invalid_file,
              "{}: expected a state of {} numbers, found {}", name, s.layout.count(),
              header.values);
  const auto vocab = static_cast<std::int64_t>(s.logits.size());
  XLSTM_CHECK(header.logits == 0 || header.logits == vocab, invalid_file,
              "{}: expected 0 or {} logits, found {}", name, vocab, header.logits);
  // Far more than anybody reads, and far from where counting on would overflow.
  constexpr std::int64_t kMaxTokens = std::int64_t{1} << 60;
  XLSTM_CHECK(header.tokens >= 0 && header.tokens <= kMaxTokens, invalid_file,
              "{}: expected a token count, found {}", name, header.tokens);
  std::size_t expected = sizeof(Header) + static_cast<std::size_t>(header.logits) * sizeof(float);
  for (const model::StateLayout::Part& part : s.layout.parts()) expected += part.bytes();
  XLSTM_CHECK(bytes.size() == expected, invalid_file, "{}: expected {} bytes, found {}", name,
              expected, bytes.size());
  const std::byte* from = bytes.data() + sizeof(Header);
  const auto in_file = [&](const std::byte*, std::size_t size) {
    return std::span(std::exchange(from, from + size), size);
  };
  XLSTM_CHECK(checksum(header, s, in_file) == header.checksum, invalid_file,
              "{}: expected the checksum of the content, found another: the file is damaged", name);

  from = bytes.data() + sizeof(Header);
  s.on({});
  for_each_part(s, [&](std::byte* data, std::size_t size) {
    std::memcpy(data, from, size);
    from += size;
  });
  s.has_logits = header.logits != 0;
  if (s.has_logits) std::memcpy(s.logits.data(), from, s.logits.size() * sizeof(float));
  s.tokens = header.tokens;
}

}  // namespace xlstm
