{# Written by `./dev docs --write` from imbrace_lake/query/views.py. #}
WITH started AS (
    SELECT e.*, CAST(date_trunc('week', {{ imbrace_lake.local("e.first_contact_at", "s.time_zone") }}) AS DATE) AS week_start
    FROM {{ ref('episodes') }} AS e CROSS JOIN {{ ref('settings') }} AS s WHERE e.first_contact_at IS NOT NULL
),
ranked AS (
    SELECT started.*,
           row_number() OVER (
               PARTITION BY organization_id, week_start ORDER BY first_response_ms NULLS LAST
           ) AS rank,
           count(first_response_ms) OVER (PARTITION BY organization_id, week_start) AS answered,
           row_number() OVER (
               PARTITION BY organization_id, week_start ORDER BY first_response_with_bots_ms NULLS LAST
           ) AS rank_with_bots,
           count(first_response_with_bots_ms) OVER (PARTITION BY organization_id, week_start) AS answered_with_bots,
           row_number() OVER (
               PARTITION BY organization_id, week_start ORDER BY first_response_business_ms NULLS LAST
           ) AS rank_business,
           count(first_response_business_ms) OVER (PARTITION BY organization_id, week_start) AS answered_business
    FROM started
)
SELECT organization_id, week_start, count(*) AS episodes, count(first_response_ms) AS answered,
       1 - CAST(count(first_response_ms) AS DOUBLE) / count(*) AS share_unanswered,
       count(first_response_with_bots_ms) AS answered_with_bots,
       1 - CAST(count(first_response_with_bots_ms) AS DOUBLE) / count(*)
           AS share_unanswered_with_bots,
       min(CASE WHEN rank * 100 >= answered * 50 THEN first_response_ms END)
           AS median_ms,
       min(CASE WHEN rank * 100 >= answered * 90 THEN first_response_ms END)
           AS p90_ms,
       min(CASE WHEN rank_with_bots * 100 >= answered_with_bots * 50 THEN first_response_with_bots_ms END)
           AS median_with_bots_ms,
       min(CASE WHEN rank_with_bots * 100 >= answered_with_bots * 90 THEN first_response_with_bots_ms END)
           AS p90_with_bots_ms,
       min(CASE WHEN rank_business * 100 >= answered_business * 50 THEN first_response_business_ms END)
           AS median_business_ms,
       min(CASE WHEN rank_business * 100 >= answered_business * 90 THEN first_response_business_ms END)
           AS p90_business_ms
FROM ranked GROUP BY organization_id, week_start
