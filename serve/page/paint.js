// A picture with what is laid over it.

const EDGE = "rgb(255 255 255)";
const SHADE = "rgb(0 0 0 / 0.65)";

/** Fit the pixels of a canvas to its size on the screen; true if they have changed. */
export function fit(canvas) {
  const size = Math.max(1, Math.round(canvas.clientWidth * (window.devicePixelRatio || 1)));
  if (canvas.width === size && canvas.height === size) return false;
  canvas.width = canvas.height = size;
  return true;
}

/**
 * Paint a view: `crop` (a canvas, or null), `overlay` (a canvas with a pixel per patch, or null), its opacity, whether
 * it is smooth, the grid, and the patches that are marked: `cursor` and `match`, [row, column] or null.
 */
export function paint(canvas, { crop, overlay, opacity, isSmooth, grid, cursor, match }) {
  const context = canvas.getContext("2d");
  const size = canvas.width;
  context.clearRect(0, 0, size, size);
  if (crop) context.drawImage(crop, 0, 0, size, size);
  if (overlay) {
    context.save();
    context.globalAlpha = crop ? opacity : 1;
    context.imageSmoothingEnabled = isSmooth;
    context.imageSmoothingQuality = "high";
    context.drawImage(overlay, 0, 0, size, size);
    context.restore();
  }
  if (grid && cursor) markPatch(context, grid, cursor);
  if (grid && match) markMatch(context, grid, match);
}

/** Dark around light, so that it is seen on anything. */
function outline(context, draw, width) {
  for (const [colour, stroke] of [[SHADE, width * 2.4], [EDGE, width]]) {
    context.strokeStyle = colour;
    context.lineWidth = stroke;
    context.beginPath();
    draw();
    context.stroke();
  }
}

function markPatch(context, [height, width], [row, column]) {
  const [across, down] = [context.canvas.width / width, context.canvas.height / height];
  outline(context, () => context.rect(column * across, row * down, across, down), lineWidth(context));
}

function markMatch(context, [height, width], [row, column]) {
  const [across, down] = [context.canvas.width / width, context.canvas.height / height];
  const radius = Math.max(Math.min(across, down) * 0.5, 5 * lineWidth(context));
  const draw = () => context.arc((column + 0.5) * across, (row + 0.5) * down, radius, 0, Math.PI * 2);
  outline(context, draw, lineWidth(context));
}

const lineWidth = (context) => Math.max(1.5, context.canvas.width / 260);
