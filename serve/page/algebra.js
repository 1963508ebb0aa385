// Vectors: cosine, order, and the principal components of patch features.

const ROUNDS = 80; // of the power iteration, at most
const SETTLED = 1e-6; // change of a direction from which on it is taken as found
const LOW = 0.01; // shares of the patches that become the darkest and the brightest
const HIGH = 0.99;

/** Rows of a matrix that lies flat in a Float32Array, as views. */
export function rows(flat, dim) {
  return Array.from({ length: flat.length / dim }, (_, row) => flat.subarray(row * dim, (row + 1) * dim));
}

export function dot(one, other) {
  let sum = 0;
  for (let index = 0; index < one.length; index += 1) sum += one[index] * other[index];
  return sum;
}

/** A copy of unit length; one of zeros stays as it is. */
export function unit(vector) {
  const length = Math.sqrt(dot(vector, vector)) || 1;
  return Float32Array.from(vector, (value) => value / length);
}

/** The items that have a vector, each with the cosine of it to the query's, best first. Vectors have unit length. */
export function nearest(query, items, vectorOf) {
  return items
    .map((item) => ({ item, score: dot(query, vectorOf(item)) }))
    .sort((one, other) => other.score - one.score);
}

/** The index of the largest number, leaving out one. */
export function largest(numbers, but = -1) {
  let best = -1;
  for (let index = 0; index < numbers.length; index += 1) {
    if (index !== but && (best < 0 || numbers[index] > numbers[best])) best = index;
  }
  return best;
}

/**
 * The first principal components of rows: the coordinates of each row along them, and their shares of the variance.
 * By power iteration on all directions at once, kept at right angles; the sign makes the largest entry positive.
 */
export function principal(points, count = 3) {
  const centred = centre(points);
  let axes = orthogonal(starts(count, points[0].length));
  for (let round = 0; round < ROUNDS; round += 1) {
    const next = orthogonal(axes.map((axis) => spread(centred, axis)));
    const change = Math.max(...next.map((axis, index) => 1 - Math.abs(dot(axis, axes[index]))));
    axes = next;
    if (change < SETTLED) break;
  }
  axes = axes.map(signed);
  const whole = centred.reduce((sum, point) => sum + dot(point, point), 0) || 1;
  const coordinates = centred.map((point) => axes.map((axis) => dot(point, axis)));
  const shares = axes.map((_, index) => coordinates.reduce((sum, at) => sum + at[index] ** 2, 0) / whole);
  return { coordinates, shares };
}

/** Coordinates as colours in 0..1 per component; a few odd patches do not set the scale. */
export function asColours(coordinates) {
  const ranges = coordinates[0].map((_, component) => range(coordinates.map((at) => at[component])));
  return coordinates.map((at) =>
    at.map((value, component) => {
      const [low, high] = ranges[component];
      return high > low ? Math.min(1, Math.max(0, (value - low) / (high - low))) : 0.5;
    }),
  );
}

function centre(points) {
  const mean = new Float64Array(points[0].length);
  for (const point of points) point.forEach((value, index) => (mean[index] += value / points.length));
  return points.map((point) => Float64Array.from(point, (value, index) => value - mean[index]));
}

/** Directions to begin with: any will do, but the same each time. */
function starts(count, dim) {
  let state = 1;
  const next = () => (state = (state * 48271) % 2147483647) / 2147483647 - 0.5;
  return Array.from({ length: Math.min(count, dim) }, () => Float64Array.from({ length: dim }, next));
}

/** The covariance of the points times a direction, without writing the covariance down. */
function spread(points, axis) {
  const result = new Float64Array(axis.length);
  for (const point of points) {
    const weight = dot(point, axis);
    for (let index = 0; index < result.length; index += 1) result[index] += weight * point[index];
  }
  return result;
}

/** At right angles to those before, of unit length; what has no length left stays zero. */
function orthogonal(axes) {
  const done = [];
  for (const axis of axes) {
    const before = Math.sqrt(dot(axis, axis));
    for (const other of done) {
      const along = dot(axis, other);
      for (let index = 0; index < axis.length; index += 1) axis[index] -= along * other[index];
    }
    const length = Math.sqrt(dot(axis, axis));
    const scale = length > 1e-9 * before ? 1 / length : 0;
    done.push(axis.map((value) => value * scale));
  }
  return done;
}

function signed(axis) {
  const peak = axis.reduce((best, value) => (Math.abs(value) > Math.abs(best) ? value : best), 0);
  return peak < 0 ? axis.map((value) => -value) : axis;
}

function range(values) {
  const sorted = Float64Array.from(values).sort();
  const at = (share) => {
    const place = share * (sorted.length - 1);
    const below = Math.floor(place);
    const above = Math.min(below + 1, sorted.length - 1);
    return sorted[below] + (sorted[above] - sorted[below]) * (place - below);
  };
  return [at(LOW), at(HIGH)];
}
