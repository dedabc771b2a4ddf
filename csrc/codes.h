// Numbers of a block as codes of 8 bits: the upper bits of a float. The magnitude, as a share of the largest in its
// block, is moved up by a small offset, from where the code counts the floats whose last kShift bits are 0. So a code
// is good to 2^-kMantissa of a number that is not small; what is small keeps steps of a constant size, and 0 is 0.
// Included inside the namespace of an instruction set or of the GPU, after half.h.

template <bool Signed>
struct Codes {
  static constexpr int kMantissa = 4, kShift = 23 - kMantissa, kTop = Signed ? 127 : 255;
  static constexpr uint32_t kOne = 0x3f800000, kFirst = kOne - (uint32_t{kTop} << kShift);
  static constexpr float kOffset = __builtin_bit_cast(float, kFirst), kLargest = 1 - kOffset;

  // What a block's numbers are multiplied by before they are encoded, and after they are decoded, by the largest
  // magnitude of it. What is below the smallest normal number counts as 0.
  static FUSEDOPT_HD float stored(float largest) { return largest < 0x1p-126f ? 0 : largest; }
  static FUSEDOPT_HD float to_codes(float largest) { return largest < 0x1p-126f ? 0 : kLargest / largest; }
  static FUSEDOPT_HD float from_codes(float largest) { return largest / kLargest; }

  // What 16 random bits are to a code: the middle of as many parts of 2^kShift.
  static FUSEDOPT_HD uint32_t chance(uint32_t bits) { return (bits << (kShift - 16)) + (1u << (kShift - 17)); }
  // `chance` is below 2^kShift, half of that to round to nearest. A number that is never negative and not 0 does not
  // become 0: others are divided by it.
  static FUSEDOPT_HD uint8_t encode(float x, float factor, uint32_t chance) {
    const float magnitude = float_of(bits_of(x) & 0x7fffffffu), moved = madd(magnitude, factor, kOffset);
    const uint32_t code = (bits_of(moved < 1.f ? moved : 1.f) - kFirst + chance) >> kShift;
    const uint32_t sign = bits_of(x) >> 31;
    if constexpr (Signed) return uint8_t((code ^ (0u - sign)) + sign);
    else return uint8_t(x > 0 ? (code > 1 ? code : 1u) : code);
  }
  static FUSEDOPT_HD float decode(uint8_t code, float factor) {
    const uint32_t count = !Signed ? code : code < 128 ? code : 256u - code;
    const float magnitude = (float_of((count << kShift) + kFirst) - kOffset) * factor;
    return Signed && code >= 128 ? -magnitude : magnitude;
  }
};
