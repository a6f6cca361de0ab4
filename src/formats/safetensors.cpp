#include "formats/safetensors.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <tuple>

#include "core/check.hpp"
#include "core/json.hpp"

namespace xlstm::formats {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr std::size_t kLengthBytes = 8;

struct DTypeName {
  std::string_view name;
  DType dtype;
};
// BOOL is read as the bytes it consists of.
constexpr std::array<DTypeName, 8> kDTypeNames{{{"F32", DType::f32},
                                                {"BF16", DType::bf16},
                                                {"F16", DType::f16},
                                                {"F64", DType::f64},
                                                {"I32", DType::i32},
                                                {"I64", DType::i64},
                                                {"U8", DType::u8},
                                                {"BOOL", DType::u8}}};

std::optional<DType> dtype_of(std::string_view name) {
  for (const auto& entry : kDTypeNames)
    if (entry.name == name) return entry.dtype;
  return std::nullopt;
}

std::string_view name_of(DType dtype) {
  for (const auto& entry : kDTypeNames)
    if (entry.dtype == dtype) return entry.name;
  return "";
}

/// Where one tensor's bytes lie, relative to the end of the header.
struct Range {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  const std::string* tensor = nullptr;
};

/// Reads the header's entries. `where` in messages is "file: tensor 'name'".
class HeaderReader {
 public:
  HeaderReader(const std::string& file, std::uint64_t data_bytes)
      : file_(file), data_bytes_(data_bytes) {}

  Range range(const std::string& name, const json& info) const {
    const json& offsets = member(name, info, "data_offsets");
    XLSTM_CHECK(offsets.is_array() && offsets.size() == 2, invalid_file,
                "{}: data_offsets: expected [begin, end], found {}", where(name),
                describe(offsets));
    const Range result{number(name, "data_offsets", offsets[0]),
                       number(name, "data_offsets", offsets[1]), &name};
    XLSTM_CHECK(result.begin <= result.end, invalid_file,
                "{}: data_offsets: expected begin <= end, found [{}, {}]", where(name),
                result.begin, result.end);
    XLSTM_CHECK(result.end <= data_bytes_, invalid_file,
                "{}: data_offsets: expected an end within the {} bytes of data that the file has "
                "(truncated?), found {}",
                where(name), data_bytes_, result.end);
    return result;
  }

  const std::string& dtype(const std::string& name, const json& info) const {
    const json& value = member(name, info, "dtype");
    XLSTM_CHECK(value.is_string(), invalid_file, "{}: dtype: expected a string, found {}",
                where(name), describe(value));
    return value.get_ref<const std::string&>();
  }

  /// The tensor's shape as a dense view without data; its bytes are those of `range`.
  Tensor view(const std::string& name, const json& info, DType type, const Range& range) const {
    const json& shape = member(name, info, "shape");
    XLSTM_CHECK(shape.is_array(), invalid_file, "{}: shape: expected an array, found {}",
                where(name), describe(shape));
    XLSTM_CHECK(shape.size() <= static_cast<std::size_t>(Tensor::kMaxRank), unsupported,
                "{}: shape: expected at most {} dimensions, found {}", where(name),
                Tensor::kMaxRank, shape.size());
    Tensor tensor;
    tensor.dtype = type;
    tensor.rank = static_cast<std::int8_t>(shape.size());
    // Strides count an empty dimension as 1, so that they cannot overflow either.
    std::uint64_t step = size_of(type);
    bool is_empty = false;
    for (std::size_t d = shape.size(); d-- > 0;) {
      const std::uint64_t size = number(name, "shape", shape[d]);
      tensor.size[d] = static_cast<std::int64_t>(size);
      tensor.stride[d] = static_cast<std::int64_t>(step / size_of(type));
      is_empty = is_empty || size == 0;
      XLSTM_CHECK(!__builtin_mul_overflow(step, std::max<std::uint64_t>(size, 1), &step) &&
                      step <= kMaxNumber,
                  invalid_file, "{}: shape: expected a size that fits 63 bits, found {}",
                  where(name), excerpt(shape.dump()));
    }
    const std::uint64_t bytes = is_empty ? 0 : step;
    XLSTM_CHECK(bytes == range.end - range.begin, invalid_file,
                "{}: expected {} bytes for {}, found {} (data_offsets [{}, {}])", where(name),
                bytes, to_string(tensor), range.end - range.begin, range.begin, range.end);
    return tensor;
  }

  std::string where(const std::string& name) const {
    return fmt::format("{}: tensor '{}'", file_, excerpt(name));
  }

 private:
  static constexpr std::uint64_t kMaxNumber = std::numeric_limits<std::int64_t>::max();

  const json& member(const std::string& name, const json& info, const char* key) const {
    const auto entry = info.find(key);
    XLSTM_CHECK(entry != info.end(), invalid_file, "{}: expected the key {}, found none",
                where(name), key);
    return *entry;
  }

  std::uint64_t number(const std::string& name, const char* key, const json& value) const {
    XLSTM_CHECK(value.is_number_unsigned() && value.get<std::uint64_t>() <= kMaxNumber,
                invalid_file, "{}: {}: expected non-negative integers, found {}", where(name), key,
                describe(value));
    return value.get<std::uint64_t>();
  }

  const std::string& file_;
  std::uint64_t data_bytes_;
};

/// The format's rule: sorted by offset, the tensors cover all bytes of data exactly.
void check_layout(std::vector<Range>& ranges, std::uint64_t data_bytes, const HeaderReader& reader,
                  const std::string& file) {
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  std::uint64_t expected = 0;
  for (const Range& range : ranges) {
    XLSTM_CHECK(range.begin == expected, invalid_file,
                "{}: data_offsets: expected to begin at {}, where the tensor before it ends, found "
                "{} ({})",
                reader.where(*range.tensor), expected, range.begin,
                range.begin < expected ? "they overlap" : "a gap");
    expected = range.end;
  }
  XLSTM_CHECK(expected == data_bytes, invalid_file,
              "{}: expected {} bytes of data as the header says, found {}", file, expected,
              data_bytes);
}

bool is_aligned(const Tensor& tensor) {
  return reinterpret_cast<std::uintptr_t>(tensor.data) % size_of(tensor.dtype) == 0;
}

/// Moves tensors that do not start on a multiple of their element's size to memory that does.
/// Files that other writers made are seldom like that; reading them must not be undefined.
Buffer copy_unaligned(std::map<std::string, Tensor>& tensors) {
  constexpr std::size_t kElement = 8;  // the largest element
  const auto padded = [](std::size_t bytes) {
    return (bytes + kElement - 1) / kElement * kElement;
  };
  std::size_t total = 0;
  for (const auto& [name, tensor] : tensors)
    if (!is_aligned(tensor)) total += padded(tensor.bytes());
  Buffer copies;
  if (total == 0) {
    // Only empty tensors can be unaligned now, and nobody reads them.
    return copies;
  }
  copies = Buffer(total);
  std::byte* position = copies.data();
  for (auto& [name, tensor] : tensors) {
    if (is_aligned(tensor)) continue;
    const std::size_t bytes = tensor.bytes();
    std::memcpy(position, tensor.data, bytes);
    tensor.data = position;
    position += padded(bytes);
  }
  return copies;
}

}  // namespace

SafetensorsFile SafetensorsFile::parse(std::span<const std::byte> bytes, const std::string& name) {
  XLSTM_CHECK(bytes.size() >= kLengthBytes, invalid_file,
              "{}: expected a safetensors file of at least 8 bytes, found {}", name, bytes.size());
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  bytes = bytes.subspan(kLengthBytes);
  XLSTM_CHECK(header_bytes <= kMaxHeaderBytes, invalid_file,
              "{}: expected a safetensors header of at most {} bytes, found {}", name,
              kMaxHeaderBytes, header_bytes);
  XLSTM_CHECK(header_bytes <= bytes.size(), invalid_file,
              "{}: expected a header of {} bytes, found only {} bytes after its length", name,
              header_bytes, bytes.size());
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), header_bytes);
  const std::span<const std::byte> data = bytes.subspan(header_bytes);
  const json header = parse_json(text, name + ": header");
  XLSTM_CHECK(header.is_object(), invalid_file, "{}: header: expected an object, found {}", name,
              describe(header));

  SafetensorsFile file;
  file.name_ = name;
  const HeaderReader reader(name, data.size());
  std::vector<Range> ranges;
  for (const auto& [key, info] : header.items()) {
    XLSTM_CHECK(info.is_object(), invalid_file, "{}: expected an object, found {}",
                reader.where(key), describe(info));
    if (key == "__metadata__") {
      for (const auto& [name_of_value, value] : info.items()) {
        XLSTM_CHECK(value.is_string(), invalid_file,
                    "{}: __metadata__: '{}': expected a string, found {}", name,
                    excerpt(name_of_value), describe(value));
        file.metadata_.emplace(name_of_value, value.get<std::string>());
      }
      continue;
    }
    const std::string& type_name = reader.dtype(key, info);
    const Range range = reader.range(key, info);
    const auto type = dtype_of(type_name);
    const std::string* stored_name = nullptr;  // outlives this loop, unlike `key`
    if (type) {
      Tensor tensor = reader.view(key, info, *type, range);
      tensor.data = const_cast<std::byte*>(data.data() + range.begin);
      stored_name = &file.tensors_.emplace(key, tensor).first->first;
    } else {
      stored_name = &file.unsupported_.emplace(key, type_name).first->first;
    }
    ranges.push_back({range.begin, range.end, stored_name});
  }
  check_layout(ranges, data.size(), reader, name);
  file.copies_ = copy_unaligned(file.tensors_);
  return file;
}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  MappedFile mapping(path, true);
  SafetensorsFile file = parse(mapping.bytes(), path.string());
  file.file_ = std::move(mapping);
  return file;
}

void write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata) {
  // Widest elements first keeps every tensor aligned; names make the order unique.
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& entry : tensors) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    const std::size_t a_size = size_of(a->tensor.dtype), b_size = size_of(b->tensor.dtype);
    return a_size != b_size ? a_size > b_size : a->name < b->name;
  });

  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const NamedTensor* entry : order) {
    const Tensor& tensor = entry->tensor;
    XLSTM_CHECK(tensor.device.is_cpu() && tensor.is_dense(), invalid_argument,
                "{}: tensor '{}': expected a dense tensor in host memory, found {}", path.string(),
                entry->name, to_string(tensor));
    XLSTM_CHECK(entry->name != "__metadata__" && !header.contains(entry->name), invalid_argument,
                "{}: tensor '{}': expected a name that is used once, found it taken", path.string(),
                entry->name);
    json shape = json::array();
    for (int d = 0; d < tensor.rank; ++d) shape.push_back(tensor.dim(d));
    const std::uint64_t end = offset + tensor.bytes();
    header[entry->name] = {
        {"dtype", name_of(tensor.dtype)}, {"shape", shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = write_json(header);
  text.resize((text.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes, ' ');
  const std::uint64_t header_bytes = text.size();
  XLSTM_CHECK(header_bytes <= kMaxHeaderBytes, invalid_argument,
              "{}: expected a header of at most {} bytes, found {}", path.string(), kMaxHeaderBytes,
              header_bytes);

  AtomicFile file(path);
  file.write(std::as_bytes(std::span(&header_bytes, 1)));
  file.write(std::as_bytes(std::span(text)));
  for (const NamedTensor* entry : order)
    file.write({static_cast<const std::byte*>(entry->tensor.data), entry->tensor.bytes()});
  file.commit();
}

}  // namespace xlstm::formats
