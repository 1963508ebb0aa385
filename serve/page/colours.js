// Colours of numbers.

const HEAT = [
  [13, 9, 33], [52, 16, 92], [105, 26, 110], [159, 42, 99], [208, 68, 74], [241, 112, 60], [252, 172, 92],
  [253, 233, 180],
]; // from unlike to alike, ever lighter, so that it can be read without seeing colours

/** A number in 0..1 as [red, green, blue], 0..255. */
export function heat(share) {
  const place = Math.min(1, Math.max(0, share)) * (HEAT.length - 1);
  const below = Math.min(Math.floor(place), HEAT.length - 2);
  return HEAT[below].map((value, channel) => value + (HEAT[below + 1][channel] - value) * (place - below));
}

/** A picture with a pixel per patch: numbers by the heat scale between low and high. */
export function heatPicture(numbers, [height, width], low, high) {
  const scale = high > low ? 1 / (high - low) : 0;
  return picture(Array.from(numbers, (value) => heat((value - low) * scale)), height, width);
}

/** The same of colours whose parts are in 0..1. */
export function colourPicture(colours, [height, width]) {
  return picture(colours.map(([red, green = 0.5, blue = 0.5]) => [red * 255, green * 255, blue * 255]), height, width);
}

/** The scale itself, from left to right. */
export function paintScale(canvas) {
  const columns = Array.from({ length: canvas.width }, (_, column) => heat(column / (canvas.width - 1)));
  canvas.getContext("2d").putImageData(pixels(columns, 1, canvas.width), 0, 0);
}

function picture(colours, height, width) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(pixels(colours, height, width), 0, 0);
  return canvas;
}

function pixels(colours, height, width) {
  const image = new ImageData(width, height);
  colours.forEach(([red, green, blue], index) => image.data.set([red, green, blue, 255], index * 4));
  return image;
}
