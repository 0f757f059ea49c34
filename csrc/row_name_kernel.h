// NH of one chunk, and of a block of chunks. Included once for every SIMD level, like lanes.h.

// sums[p] = sum of (m[2j] + k[2j]) * (m[2j+1] + k[2j+1]), k = keys[p].
inline void name_chunk(const char* chunk, const LevelKeys& keys, std::uint64_t* sums) {
#if MS_SIMD >= 2
  __m512i sum[kSums] = {};
  for (std::int64_t at = 0; at < kChunk; at += 64) {
    const __m512i words = _mm512_loadu_si512(chunk + at);
    for (int p = 0; p < kSums; ++p) {
      const __m512i mixed = _mm512_add_epi32(words, _mm512_load_si512(keys.of[p] + at / 4));
      const __m512i odd = _mm512_srli_epi64(mixed, 32);
      sum[p] = _mm512_add_epi64(sum[p], _mm512_mul_epu32(mixed, odd));
    }
  }
  for (int p = 0; p < kSums; ++p) {
    alignas(64) std::uint64_t parts[8];
    _mm512_store_si512(parts, sum[p]);
    sums[p] = 0;
    for (const std::uint64_t part : parts) sums[p] += part;
  }
#elif MS_SIMD == 1
  __m256i sum[kSums] = {};
  for (std::int64_t at = 0; at < kChunk; at += 32) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(chunk + at));
    for (int p = 0; p < kSums; ++p) {
      const auto* key = reinterpret_cast<const __m256i*>(keys.of[p] + at / 4);
      const __m256i mixed = _mm256_add_epi32(words, _mm256_load_si256(key));
      const __m256i odd = _mm256_srli_epi64(mixed, 32);
      sum[p] = _mm256_add_epi64(sum[p], _mm256_mul_epu32(mixed, odd));
    }
  }
  for (int p = 0; p < kSums; ++p) {
    alignas(32) std::uint64_t parts[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(parts), sum[p]);
    sums[p] = parts[0] + parts[1] + parts[2] + parts[3];
  }
#else
  for (int p = 0; p < kSums; ++p) sums[p] = 0;
  for (std::int64_t j = 0; j < kChunk / 4; j += 2) {
    std::uint32_t words[2];
    std::memcpy(words, chunk + 4 * j, sizeof(words));
    for (int p = 0; p < kSums; ++p) {
      const std::uint32_t even = words[0] + keys.of[p][j], odd = words[1] + keys.of[p][j + 1];
      sums[p] += std::uint64_t{even} * odd;
    }
  }
#endif
}

// The sums of all chunks of up to kChunk * kChunks bytes, the last one filled up with zeros.
inline void name_chunks(const char* data, std::int64_t bytes, const LevelKeys& keys, std::uint64_t* sums) {
  std::int64_t at = 0;
  for (; at + kChunk <= bytes; at += kChunk, sums += kSums) name_chunk(data + at, keys, sums);
  if (at == bytes && at > 0) return;
  char last[kChunk] = {};
  if (bytes > at) std::memcpy(last, data + at, static_cast<std::size_t>(bytes - at));
  name_chunk(last, keys, sums);
}

// Two levels at once.
inline void name_block(const char* data, std::int64_t bytes, const LevelKeys* keys, std::uint64_t* sums) {
  std::uint64_t chunks[kChunks * kSums] = {};
  name_chunks(data, bytes, keys[0], chunks);
  name_chunk(reinterpret_cast<const char*>(chunks), keys[1], sums);
}
