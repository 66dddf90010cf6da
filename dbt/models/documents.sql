{# Written by `./dev docs --write` from imbrace_lake/query/views.py. #}
WITH spoken AS (
    SELECT t.*, {{ imbrace_lake.minute("local_at") }} || ' ' || sender_role || ': '
                || coalesce(text, '[' || coalesce(type, 'message') || ']') AS line
    FROM {{ ref('turns') }} AS t
),
placed AS (
    SELECT spoken.*, coalesce(CAST(sum(length(line)) OVER (
               PARTITION BY organization_id, conversation_id, episode ORDER BY turn_number
               ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS BIGINT), 0) AS begins
    FROM spoken
),
chunked AS (
    SELECT placed.*,
           1 + CAST((begins - begins % s.document_characters) / s.document_characters AS BIGINT)
               AS chunk
    FROM placed CROSS JOIN {{ ref('settings') }} AS s
)
SELECT organization_id, conversation_id, episode, chunk, min(created_at) AS started_at,
       max(created_at) AS ended_at, count(*) AS messages,
       min_by(message_id, turn_number) AS first_message_id,
       max_by(message_id, turn_number) AS last_message_id,
       {{ imbrace_lake.lines("line", "turn_number") }} AS text
FROM chunked GROUP BY organization_id, conversation_id, episode, chunk
